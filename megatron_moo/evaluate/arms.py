"""The sides of a comparison as its page shows them: runs of one recipe, one name, one colour, means over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megatron_moo.evaluate.compare import Comparison, Run
from megatron_moo.report.charts import palette
from megatron_moo.report.charts.binning import bins
from megatron_moo.report.charts.forest import Point
from megatron_moo.report.charts.lines import Series
from megatron_moo.report.metrics import RunMetrics, read_metrics
from megatron_moo.report.records import Array
from megatron_moo.report.sections.room import Room
from megatron_moo.report.summary import RunSummary, mean, summarize

SHORT = 22  # characters of a name beside a line
POINTS = 160
MOST_BANDS = 3  # arms; the bands of more would cover each other
Values = Mapping[int, float]  # step to value


@dataclass(frozen=True)
class Arm:
    """One side; ``runs`` and ``metrics`` are in the order of seeds."""

    name: str
    short: str
    classes: str
    runs: tuple[Run, ...]
    metrics: tuple[RunMetrics, ...]

    @cached_property
    def summaries(self) -> tuple[RunSummary, ...]:
        """Of every run."""
        return tuple(summarize(one) for one in self.metrics)

    @cached_property
    def rooms(self) -> tuple[Room, ...]:
        """What a run's own page works with, of every run."""
        return tuple(
            Room(metrics, summary, run.name)
            for run, metrics, summary in zip(self.runs, self.metrics, self.summaries, strict=True)
        )


@dataclass(frozen=True)
class Both:
    """A comparison and its arms, the reference first."""

    found: Comparison
    arms: tuple[Arm, ...]

    @cached_property
    def seen(self) -> tuple[str, ...]:
        """Languages trained on, as the reference's first run names them."""
        return self.arms[0].runs[0].seen

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Held-out languages that are not trained on."""
        return self.arms[0].runs[0].unseen


@dataclass(frozen=True)
class Spread:
    """Mean, lowest and highest over the runs of an arm; NaN where a run has no number."""

    mean: float
    low: float
    high: float
    each: tuple[float, ...]


def arms_of(found: Comparison) -> tuple[Arm, ...]:
    """The arms of a comparison, the reference first and in grey."""
    shorts = _shorts(found.groups)
    arms = []
    for index, (name, group) in enumerate(found.groups.items()):
        runs = tuple(sorted(group, key=lambda run: run.seed))
        classes = "c7 d0" if index == 0 else palette.category((index - 1) % (palette.CATEGORIES - 1))
        arms.append(Arm(name, shorts[name], classes, runs, tuple(read_metrics(run.folder) for run in runs)))
    return tuple(arms)


def _shorts(groups: Mapping[str, Sequence[Run]]) -> dict[str, str]:
    """Names that fit beside a line: the flags' values, or else the first run's name, or a number."""
    tries: tuple[Callable[[str], str], ...] = (
        lambda name: " ".join(part.split(" ", 1)[-1] for part in name.split(", ")),
        lambda name: groups[name][0].name,
    )
    for shorten in tries:
        short = {name: shorten(name) for name in groups}
        if len(set(short.values())) == len(short) and all(0 < len(one) <= SHORT for one in short.values()):
            return short
    return {name: f"recipe {i + 1}" for i, name in enumerate(groups)}


def spread(values: Sequence[float]) -> Spread:
    """Of one number per run; NaN as soon as one run has none, so that arms stay comparable."""
    if not values or not all(map(math.isfinite, values)):
        return Spread(math.nan, math.nan, math.nan, tuple(values))
    return Spread(float(np.mean(values)), min(values), max(values), tuple(values))


def point(arm: Arm, values: Spread) -> Point:
    """An arm's mean in a forest plot, with a line over its runs where there are several."""
    many = len(values.each) > 1
    ends = (values.low, values.high) if many else (math.nan, math.nan)
    return Point(arm.short, values.mean, arm.classes, *ends)


def bits_of(arm: Arm, tags: Sequence[str]) -> Spread:
    """Bits per byte at the last validation, mean over ``tags``, spread over runs."""
    return spread([_mean(run.bits.get(tag, math.nan) for tag in tags) for run in arm.runs])


def worst_of(arm: Arm, tags: Sequence[str]) -> Spread:
    """Bits per byte of each run's worst language among ``tags``."""
    return spread([max((run.bits.get(tag, math.nan) for tag in tags), default=math.nan) for run in arm.runs])


def _mean(values: object) -> float:
    found = list(values)  # type: ignore[call-overload]
    return float(np.mean(found)) if found else math.nan


def series(
    arms: Sequence[Arm], pick: Callable[[RunMetrics], Values], dashes: str = ""
) -> tuple[Array, list[Series], str]:
    """A line per arm over the union of steps: mean over its runs, band from the lowest to the highest (of few arms).

    Args:
        arms: the arms.
        pick: a run's values by step.
        dashes: palette class of the lines' dashes, in place of the arm's own.

    Returns:
        the steps, the lines (only of arms that measured anything), and what a point is, in words.
    """
    told = [[pick(metrics) for metrics in arm.metrics] for arm in arms]
    steps = sorted({step for runs in told for values in runs for step in values})
    grouped = bins(len(steps), POINTS)
    x = grouped.mean(np.array(steps, dtype=np.float64))
    lines = []
    for arm, runs in zip(arms, told, strict=True):
        # [runs, steps]; a step that one run lacks would make the mean jump, so it is left out.
        table = np.array(
            [[values.get(step, math.nan) for step in steps] for values in runs], dtype=np.float64
        )
        table = np.array([grouped.mean(row) for row in table]) if steps else table
        whole = np.isfinite(table).all(axis=0)
        if not whole.any():
            continue
        table = np.where(whole, table, math.nan)
        many = len(runs) > 1 and len(arms) <= MOST_BANDS
        lines.append(
            Series(
                arm.short, table.mean(axis=0), f"{arm.classes.split()[0]} {dashes or arm.classes.split()[1]}",
                low=table.min(axis=0) if many else None, high=table.max(axis=0) if many else None,
            )
        )  # fmt: skip
    return x, lines, grouped.note() if steps else ""


def held_out(tags: Sequence[str]) -> Callable[[RunMetrics], Values]:
    """Bits per byte by step of validation, mean over ``tags``."""
    return lambda metrics: {
        valid.step: _mean(valid.bits_per_byte.get(tag, math.nan) for tag in tags) for valid in metrics.valids
    }


def trained(tags: Sequence[str]) -> Callable[[RunMetrics], Values]:
    """Training loss by step, mean over those of ``tags`` that the step had."""
    return lambda metrics: {
        step.step: mean(step.loss[tag] for tag in tags if tag in step.loss) for step in metrics.steps
    }
