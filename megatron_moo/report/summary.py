"""The few numbers that say how a run went, for the table in the terminal and the page's headline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import StepRecord, ValidRecord

SHARE_OF_STEPS = 10  # "at the end" means the last tenth of the steps
MOST_STEPS = 10  # and never more than ten of them


@dataclass(frozen=True)
class Change:
    """A number at the start and at the end; NaN when it was not measured (or was not finite)."""

    start: float
    end: float

    @property
    def by(self) -> float:
        """End minus start."""
        return self.end - self.start

    @property
    def is_finite(self) -> bool:
        """Both are numbers."""
        return math.isfinite(self.start) and math.isfinite(self.end)


NOTHING = Change(math.nan, math.nan)


@dataclass(frozen=True)
class RunSummary:
    """Losses in nats per token.

    Training loss at the start is a language's first value, at the end the mean of its values in the last
    ``window`` steps. Held-out numbers are those of the first and of the last validation.
    """

    method: str
    block: str
    steps: int  # the last step
    window: int  # steps that "at the end" averages over
    train: Mapping[str, Change]
    held_out: Mapping[str, Change]
    bits_per_byte: Mapping[str, Change]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    first_valid: int | None
    last_valid: int | None
    conflict: Change  # share of (block, pair) with a negative cosine: first steps and last steps
    cosine_same: float  # mean of the values measured in the last steps, or the last value before them
    tokens: Mapping[str, float]  # drawn in the whole run
    tokens_per_s: float  # median over the steps
    step_time_s: float  # median over the steps
    drawn: Mapping[
        str, Mapping[str, float]
    ]  # per language: asked, expected and drawn token shares, and counts
    presence: str  # how languages came: present, law or mixed

    def complete(self, tags: Iterable[str]) -> tuple[str, ...]:
        """Those ``tags`` with a finite start and end in everything that was measured for any of them.

        Means are over these, so that the start, the end and every column speak of the same languages.
        """
        tags = tuple(tags)
        kinds = (self.train, self.held_out, self.bits_per_byte)
        measured = [kind for kind in kinds if any(tag in kind for tag in tags)]
        return tuple(tag for tag in tags if all(kind.get(tag, NOTHING).is_finite for kind in measured))

    def mean(self, changes: Mapping[str, Change], tags: Iterable[str]) -> Change:
        """Mean over the complete ones of ``tags``; NaN when there is none or it was not measured."""
        found = [changes[tag] for tag in self.complete(tags) if tag in changes]
        return Change(mean(c.start for c in found), mean(c.end for c in found))

    def mean_of(self, tags: Iterable[str]) -> str:
        """What a mean is over, in words: "mean of 14" or, where some are not complete, "mean of 12 of 14"."""
        tags = tuple(tags)
        complete = len(self.complete(tags))
        return f"mean of {complete}" if complete == len(tags) else f"mean of {complete} of {len(tags)}"

    def worst(self, changes: Mapping[str, Change]) -> tuple[str, Change] | None:
        """The language with the highest value at the end."""
        known = [(tag, change) for tag, change in changes.items() if math.isfinite(change.end)]
        return max(known, key=lambda item: item[1].end, default=None)


def summarize(metrics: RunMetrics) -> RunSummary:
    """The summary of what was measured so far."""
    steps, valids = metrics.steps, metrics.valids
    window = end_window(len(steps))
    head, tail = steps[:window], steps[-window:]
    last_moo = next((step.moo for step in reversed(steps) if step.moo), None)
    return RunSummary(
        method=last_moo.method if last_moo else "",
        block=last_moo.block if last_moo else "",
        steps=steps[-1].step if steps else 0,
        window=window,
        train={tag: _train_change(steps, tail, tag) for tag in metrics.languages},
        held_out=_valid_changes([valid.loss for valid in valids]),
        bits_per_byte=_valid_changes([valid.bits_per_byte for valid in valids]),
        seen=_tags(valids, "seen"),
        unseen=_tags(valids, "unseen"),
        first_valid=valids[0].step if valids else None,
        last_valid=valids[-1].step if valids else None,
        conflict=Change(_conflict(head), _conflict(tail)),
        cosine_same=_same_at_end(steps, window),
        tokens={tag: _total(step.tokens.get(tag, 0.0) for step in steps) for tag in _token_tags(metrics)},
        tokens_per_s=median(step.tokens_per_s for step in steps),
        step_time_s=median(step.step_time_s for step in steps),
        drawn=metrics.drawn,
        presence=metrics.presence,
    )


def end_window(steps: int) -> int:
    """How many steps "at the end" averages over: a tenth of them, one at least and ten at most."""
    return min(MOST_STEPS, max(1, steps // SHARE_OF_STEPS))


def mean(values: Iterable[float]) -> float:
    """Mean of the finite values, NaN without any."""
    finite = _finite(values)
    return float(np.mean(finite)) if finite else math.nan


def median(values: Iterable[float]) -> float:
    """Median of the finite values, NaN without any."""
    finite = _finite(values)
    return float(np.median(finite)) if finite else math.nan


def _finite(values: Iterable[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _total(values: Iterable[float]) -> float:
    return float(sum(_finite(values)))


def _train_change(steps: list[StepRecord], tail: list[StepRecord], tag: str) -> Change:
    start = next((step.loss[tag] for step in steps if tag in step.loss), math.nan)
    at_end = [step.loss[tag] for step in tail if tag in step.loss]
    if not at_end:  # a language that sat out the last steps: its last value
        at_end = [step.loss[tag] for step in steps if tag in step.loss][-1:]
    # A loss that is not finite is told, not averaged away.
    end = float(np.mean(at_end)) if at_end and all(map(math.isfinite, at_end)) else math.nan
    return Change(start, end)


def _valid_changes(passes: list[Mapping[str, float]]) -> dict[str, Change]:
    changes: dict[str, Change] = {}
    for values in passes:
        for tag, value in values.items():
            changes[tag] = Change(changes[tag].start if tag in changes else value, value)
    return changes


def _tags(valids: list[ValidRecord], part: str) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for valid in valids:
        names.update(dict.fromkeys(getattr(valid, part)))
    return tuple(names)


def _token_tags(metrics: RunMetrics) -> list[str]:
    names: dict[str, None] = dict.fromkeys(metrics.languages)
    for step in metrics.steps:
        names.update(dict.fromkeys(step.tokens))
    return list(names)


def _same_at_end(steps: list[StepRecord], window: int) -> float:
    at_end = mean(step.moo.cosine_same for step in steps[-window:] if step.moo)
    if math.isfinite(at_end):
        return at_end
    measured = _finite(step.moo.cosine_same for step in steps if step.moo)
    return measured[-1] if measured else math.nan


def _conflict(steps: list[StepRecord]) -> float:
    return mean(step.moo.conflict_rate for step in steps if step.moo)
