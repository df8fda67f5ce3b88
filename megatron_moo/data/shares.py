"""From the manifest's law to what a schedule draws, and what small languages repeat."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_moo.data.laws import objective_shares, position_shares, token_shares
from megatron_moo.data.manifest import Manifest
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.data.views import WindowView


@dataclass(frozen=True)
class Shares:
    """Shares under one law, each set sums to 1.

    Attributes:
        tokens: asked share of training tokens per language.
        positions: share of the draws per language that gives it.
        objectives: share of the draws per objective (for ``LaneSchedule(shares=...)``), in the manifest's
            order.
    """

    tokens: dict[str, float]
    positions: dict[str, float]
    objectives: tuple[float, ...]


def plan_shares(
    manifest: Manifest, sampler: LanguageSampler, presence: str = "present", budget: int | None = None
) -> Shares:
    """Shares of the manifest's law on a corpus.

    Args:
        manifest: the law, weights and objectives.
        sampler: of the train split (sizes and how full samples are).
        presence: ``present`` or ``law``.
        budget: training tokens of the whole run (UniMax).

    Under ``present`` with objectives that the law treats alike, draws are exactly uniform (a rotation in
    which counts never
    differ by more than one). Otherwise draws are corrected by how full each language's samples are.
    """
    sizes = {tag: sampler.view(tag).targets for tag in manifest.languages}
    tokens = token_shares(manifest, sizes, budget)
    fill = {tag: sampler.tokens_per_sample(tag) for tag in manifest.languages}
    wanted = objective_shares(manifest, tokens)
    if presence == "present" and max(wanted) - min(wanted) < 1e-9:
        positions = _within_objectives(manifest, position_shares(tokens, fill))
        return Shares(tokens, positions, tuple(1.0 / len(wanted) for _ in wanted))
    positions = position_shares(tokens, fill)
    return Shares(tokens, positions, objective_shares(manifest, positions))


def _within_objectives(manifest: Manifest, positions: dict[str, float]) -> dict[str, float]:
    """Keep the proportions inside each objective, with all objectives equal."""
    sums = dict(zip(manifest.objectives, objective_shares(manifest, positions), strict=True))
    count = len(sums)
    return {tag: p / sums[manifest.languages[tag].objective] / count for tag, p in positions.items()}


def tokens_drawn(sampler: LanguageSampler, tag: str, consumed: int) -> int:
    """Target tokens of a language's first ``consumed`` samples."""
    view = sampler.view(tag)
    epochs, rest = divmod(consumed, view.samples)
    if rest == 0:
        return epochs * view.targets
    first = epochs * view.samples
    if isinstance(view, WindowView):
        # Only the last window can be short: no need to walk through the epoch.
        missing = view.samples * sampler.seq_length - view.targets
        drawn_last = sampler.turn(tag, epochs, view.samples - 1) < rest
        return epochs * view.targets + rest * sampler.seq_length - missing * drawn_last
    return epochs * view.targets + sum(sampler.targets(tag, first + i) for i in range(rest))


def small_language_notes(
    manifest: Manifest, sampler: LanguageSampler, shares: Shares, total_tokens: int | None = None
) -> list[str]:
    """Warnings, one line per language that is shorter than a sample, has one document, or will repeat more
    than four times.

    Args:
        manifest, sampler, shares: as planned.
        total_tokens: training tokens of the whole run; None: repeats are left out.
    """
    notes = []
    for tag in manifest.languages:
        view, documents = sampler.view(tag), sampler.corpus.documents(tag, sampler.split)
        reasons = []
        if view.targets < sampler.seq_length:
            reasons.append(
                f"{view.targets} tokens are shorter than one sequence of {sampler.seq_length} "
                "(padded, loss mask 0)"
            )
        if documents == 1:
            reasons.append("one document only")
        if total_tokens is not None:
            repeats = shares.tokens[tag] * total_tokens / view.targets
            if repeats > 4 or (reasons and repeats > 1):
                reasons.append(
                    f"its {view.targets} tokens repeat about {repeats:.1f} times in {total_tokens} tokens"
                )
        if reasons:
            notes.append(f"{tag}: {'; '.join(reasons)}")
    return notes
