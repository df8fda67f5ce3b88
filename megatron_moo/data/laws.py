"""Sampling laws: from corpus sizes to token shares, and from token shares to shares of positions.

Let n_l be the tokens of language l. uniform 1; proportional n_l; temperature n_l ** (1/T) (Conneau et al.
2020);
UniMax (Chung et al. 2023): languages from small to large each get an equal part of what is left of the
budget, but
at most `epochs` passes, where equal means by weight; fixed: the manifest's weights alone. Under the other laws a
language's weight multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_moo.data.manifest import Manifest, SamplingSpec
from megatron_moo.errors import MooError

LAWS = ("uniform", "proportional", "temperature", "unimax", "fixed")


def law_shares(
    spec: SamplingSpec, sizes: Mapping[str, int], weights: Mapping[str, float], budget: int | None = None
) -> dict[str, float]:
    """Share of training tokens that each language should get, sums to 1.

    Args:
        spec: the law.
        sizes: tokens per language (any unit that is common to all).
        weights: the manifest's weight per language.
        budget: tokens of the whole run; needed by UniMax unless the manifest gives one.

    Raises:
        MooError: an unknown law, an empty language, or UniMax without a budget.
    """
    empty = [tag for tag, size in sizes.items() if size <= 0]
    if empty:
        raise MooError(f"language {empty[0]!r} is empty", todo="give it text or take it out of the manifest")
    if spec.law in ("uniform", "fixed"):
        raw = dict.fromkeys(sizes, 1.0)
    elif spec.law == "proportional":
        raw = {tag: float(size) for tag, size in sizes.items()}
    elif spec.law == "temperature":
        largest = max(sizes.values())  # taken out: a power of a count may be beyond any float
        raw = {tag: (size / largest) ** (1.0 / spec.temperature) for tag, size in sizes.items()}
    elif spec.law == "unimax":
        # Weights enter here and not below: multiplied afterwards they would break the cap.
        raw = unimax(sizes, _budget(spec, budget), spec.epochs, weights)
        weights = {}
    else:
        raise MooError(f"unknown sampling law {spec.law!r}", todo=f"choose one of {', '.join(LAWS)}")
    weighted = {tag: value * weights.get(tag, 1.0) for tag, value in raw.items()}
    total = sum(weighted.values())
    return {tag: value / total for tag, value in weighted.items()}


def _budget(spec: SamplingSpec, budget: int | None) -> int:
    chosen = spec.budget if spec.budget is not None else budget
    if chosen is None:
        raise MooError("UniMax needs the run's tokens", "sampling", "give sampling.budget in the manifest")
    return chosen


def unimax(
    sizes: Mapping[str, int], budget: float, epochs: float, weights: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Tokens per language by UniMax's algorithm; when every language hits its cap they sum to less than the
    budget. With weights what is left is shared in their proportion; no weight lifts the cap."""
    heavy = {tag: (weights or {}).get(tag, 1.0) for tag in sizes}
    left, weight = float(budget), sum(heavy.values())
    result: dict[str, float] = {}
    for tag in sorted(sizes, key=lambda tag: (sizes[tag] / heavy[tag], tag)):
        result[tag] = min(left * heavy[tag] / weight, sizes[tag] * epochs)
        left, weight = left - result[tag], weight - heavy[tag]
    return {tag: result[tag] for tag in sizes}


def token_shares(manifest: Manifest, sizes: Mapping[str, int], budget: int | None = None) -> dict[str, float]:
    """The manifest's law on its training languages; ``sizes`` are tokens per tag."""
    chosen = {tag: sizes[tag] for tag in manifest.languages}
    weights = {tag: language.weight for tag, language in manifest.languages.items()}
    return law_shares(manifest.sampling, chosen, weights, budget)


def position_shares(shares: Mapping[str, float], tokens_per_sample: Mapping[str, float]) -> dict[str, float]:
    """How often each language is drawn so that its TOKENS have the asked share.

    A language shorter than a sequence fills only part of each sample, so it must be drawn more often.
    """
    raw = {tag: share / tokens_per_sample[tag] for tag, share in shares.items()}
    total = sum(raw.values())
    return {tag: value / total for tag, value in raw.items()}


def objective_shares(manifest: Manifest, positions: Mapping[str, float]) -> tuple[float, ...]:
    """Position shares per objective, in the order of ``manifest.objectives``."""
    sums = dict.fromkeys(manifest.objectives, 0.0)
    for tag, language in manifest.languages.items():
        sums[language.objective] += positions[tag]
    return tuple(sums.values())
