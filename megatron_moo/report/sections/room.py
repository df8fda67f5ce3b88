"""What every section works with: the run, its summary and one colour per language."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from markupsafe import Markup

from megatron_moo.report.beside import Beside
from megatron_moo.report.charts import palette
from megatron_moo.report.charts.binning import Bins, bins
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import Array, MooRecord, StepRecord
from megatron_moo.report.summary import RunSummary

LINE_POINTS = 160
CELLS = 60  # columns of a heat map over time


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    key: str
    title: str
    lead: str
    figures: tuple[Markup, ...]


@dataclass(frozen=True)
class Room:
    """A run with at least one step."""

    metrics: RunMetrics
    summary: RunSummary
    name: str = "run"
    beside: Beside = field(default_factory=Beside)

    @property
    def steps(self) -> list[StepRecord]:
        """All steps."""
        return self.metrics.steps

    @cached_property
    def moo_steps(self) -> list[StepRecord]:
        """The steps at which conflict was measured."""
        return [step for step in self.steps if step.moo]

    @cached_property
    def moos(self) -> list[MooRecord]:
        """What was measured at ``moo_steps``."""
        return [step.moo for step in self.steps if step.moo]

    @cached_property
    def colours(self) -> dict[str, str]:
        """CSS classes of each language and objective, the same in all plots."""
        names = dict.fromkeys([*self.metrics.objectives, *self.metrics.languages, *self.summary.seen])
        names.update(dict.fromkeys(self.summary.unseen))
        return {name: palette.category(index) for index, name in enumerate(names)}

    def line_bins(self, steps: list[StepRecord]) -> tuple[Array, Bins]:
        """Steps of the points of a line chart, and how they were averaged."""
        return _binned(steps, LINE_POINTS)

    def cell_bins(self, steps: list[StepRecord]) -> tuple[Array, Bins]:
        """Steps of the columns of a heat map, and how they were averaged."""
        return _binned(steps, CELLS)

    def per_step(self, pick: Callable[[StepRecord], float]) -> Array:
        """One number for each step, [steps]."""
        return np.array([pick(step) for step in self.steps], dtype=np.float64)

    def per_block(self, pick: Callable[[MooRecord], Array]) -> Array:
        """One number for each measured step and block, [steps, blocks]; NaN where a step lacks the block."""
        index = {name: i for i, name in enumerate(self.metrics.blocks)}
        table = np.full((len(self.moos), len(index)), math.nan)
        for row, moo in enumerate(self.moos):
            table[row, [index[name] for name in moo.blocks]] = pick(moo)
        return table


def _binned(steps: list[StepRecord], most: int) -> tuple[Array, Bins]:
    grouped = bins(len(steps), most)
    return grouped.mean(np.array([step.step for step in steps], dtype=np.float64)), grouped
