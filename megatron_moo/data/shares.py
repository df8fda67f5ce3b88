"""From the manifest's law to what a schedule draws, what was drawn, and what small languages repeat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from megatron_moo.data.laws import objective_shares, position_shares, token_shares
from megatron_moo.data.manifest import Manifest
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.data.schedule import LaneSchedule
from megatron_moo.data.views import WindowView

MANY_REPEATS = 4  # passes over the same text up to which repeating costs little (Muennighoff et al. 2023)


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


def expected_positions(manifest: Manifest, shares: Shares, schedule: LaneSchedule) -> dict[str, float]:
    """Long-run share of the draws per language under the schedule's presence, sums to 1.

    Under ``law`` these are the law's; under ``present`` no objective gets less than one place of every step.
    """
    objectives = dict(zip(manifest.objectives, schedule.expected_shares(), strict=True))
    asked = dict(zip(manifest.objectives, objective_shares(manifest, shares.positions), strict=True))
    names = {tag: language.objective for tag, language in manifest.languages.items()}
    return {
        tag: objectives[names[tag]] * share / asked[names[tag]] for tag, share in shares.positions.items()
    }


def drawn_report(
    sampler: LanguageSampler,
    shares: Shares,
    expected: Mapping[str, float],
    consumed: Mapping[str, int],
    since: Mapping[str, int],
) -> dict[str, dict[str, float]]:
    """Asked against drawn, per language.

    Args:
        sampler, shares: as planned.
        expected: long-run share of the draws per language (``expected_positions``).
        consumed: samples drawn since training began.
        since: those of them that were drawn before the present law began.

    Returns:
        per language ``asked`` (the law's share of the tokens), ``expected`` (what presence makes of it),
        ``drawn`` and ``tokens`` (share and target tokens since the law began), ``samples`` and ``epochs`` (since
        training began).
    """
    tokens = {
        tag: tokens_drawn(sampler, tag, n) - tokens_drawn(sampler, tag, since.get(tag, 0))
        for tag, n in consumed.items()
    }
    total = max(1, sum(tokens.values()))
    filled = {tag: expected[tag] * sampler.tokens_per_sample(tag) for tag in consumed}
    whole = sum(filled.values())
    return {
        tag: {
            "asked": shares.tokens[tag],
            "expected": filled[tag] / whole,
            "drawn": tokens[tag] / total,
            "tokens": tokens[tag],
            "samples": n,
            "epochs": n / sampler.samples(tag),
        }
        for tag, n in consumed.items()
    }


def small_language_notes(
    manifest: Manifest,
    sampler: LanguageSampler,
    draws: Mapping[str, float] | None = None,
    total_samples: int | None = None,
) -> list[str]:
    """Warnings: a line for each language that is shorter than a sample or has one document, and a line that says
    which languages repeat more than ``MANY_REPEATS`` times, and how often.

    Args:
        manifest, sampler: the languages and their train split.
        draws: share of the run's samples per language (``expected_positions``).
        total_samples: samples of the whole run; None: repeats are left out.
    """
    notes, repeats = [], {}
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
        if draws is not None and total_samples is not None:
            times = draws[tag] * total_samples / view.samples
            if times > MANY_REPEATS:
                repeats[tag] = times
            elif reasons and times > 1:
                reasons.append(f"repeats about {_times(times)}")
        if reasons:
            notes.append(f"{tag}: {'; '.join(reasons)}")
    if repeats:
        often = sorted(repeats, key=lambda tag: -repeats[tag])
        told = ", ".join(f"{tag} {_times(repeats[tag])}" for tag in often)
        notes.append(f"text that repeats more than {MANY_REPEATS} times in this run: {told}")
    return notes


def _times(value: float) -> str:
    return f"{value:,.0f}x" if value >= 100 else f"{value:.1f}x"
