"""How far every recipe's blocks and whole model are from a point where no direction helps every objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, Spread, point, series, spread
from megatron_moo.evaluate.compare_sections.blocks import Table, end_figure, over_time
from megatron_moo.report.charts.binning import bins
from megatron_moo.report.charts.forest import ForestRow
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import ordered_colours
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.charts.scale import Scale, logarithmic
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import Array, MooRecord
from megatron_moo.report.sections.room import LINE_POINTS, Section
from megatron_moo.report.sections.stationarity import MEANING, block_lines
from megatron_moo.report.summary import end_window, mean

UNIT = "gradient norm"


def stationarity_section(both: Both) -> Section:
    """The whole model of every recipe, its blocks with the whole model beside them, and both at the end."""
    lead = (
        f"{MEANING} Means over the runs of a recipe. Where losses differ, gradients are taken at other points: a "
        "smaller norm is no merit by itself."
    )
    tables = [over_time(arm, _stationarity) for arm in both.arms]
    wholes = [_whole(arm, table) for arm, table in zip(both.arms, tables, strict=True)]
    y = _shared(tables, wholes)
    lines = [
        _blocks(arm, table, whole, y, i)
        for i, (arm, table, whole) in enumerate(zip(both.arms, tables, wholes, strict=True))
    ]
    return Section("stationarity", "Stationarity", lead, (_model(both), *lines, _end(both)))


def _stationarity(moo: MooRecord) -> Array:
    return moo.stationarity


def together(moo: MooRecord) -> float:
    """The root of the sum of the blocks' squares; NaN where one of them is."""
    return float(np.sqrt(np.square(moo.stationarity).sum())) if moo.stationarity.size else np.nan


def model_of(metrics: RunMetrics) -> Mapping[int, float]:
    """The whole model's value by step."""
    return {step.step: step.moo.stationarity_model for step in metrics.steps if step.moo}


def blocks_of(metrics: RunMetrics) -> Mapping[int, float]:
    """All blocks' value by step."""
    return {step.step: together(step.moo) for step in metrics.steps if step.moo}


def _whole(arm: Arm, table: Table) -> Array:
    """The whole model at the steps of ``table``, mean over runs."""
    told = [model_of(one) for one in arm.metrics]
    return np.array([mean(of[step] for of in told) for step in table.steps], dtype=np.float64)


def _shared(tables: list[Table], wholes: list[Array]) -> Scale | None:
    """One axis for the blocks of all recipes."""
    values = np.concatenate([*(one.values.ravel() for one in tables), *wholes])
    return logarithmic(values) if np.isfinite(values).any() else None


def _model(both: Both) -> Markup:
    x, lines, note = series(both.arms, model_of)
    _, sums, _ = series(both.arms, blocks_of, "d1")  # the same steps
    lines += [
        Series(f"{one.name}, all blocks", one.values, one.classes, text=f"blocks: {one.name}") for one in sums
    ]
    spec = Figure(
        "stationarity-model",
        "Whole model and all blocks",
        UNIT,
        f"Dashed: the root of the sum of the blocks' squares. {note}",
        height=300,
        wide=True,
    )
    return line_chart(spec, x, lines, log=True, digits=3)


def _blocks(arm: Arm, table: Table, whole: Array, y: Scale | None, index: int) -> Markup:
    grouped = bins(len(table.steps), LINE_POINTS)
    spec = Figure(
        f"stationarity-blocks-{index}",
        f"{arm.short}: stationarity per block",
        UNIT,
        f"Coloured by depth, from the first block to the last; heavy line: the whole model. {grouped.note()}",
        height=300,
    )
    lines: list[Series] = []
    x: Array = np.zeros(0)
    if table.steps:
        x = grouped.mean(np.array(table.steps, dtype=np.float64))
        lines = block_lines(table.rows, grouped.mean(table.values), grouped.mean(whole))
    return line_chart(spec, x, lines, y=y, digits=3)


def _end(both: Both) -> Markup:
    rows = [
        ForestRow(name, tuple(point(arm, _last(arm, pick)) for arm in both.arms), heavy=True)
        for name, pick in (("all blocks", blocks_of), ("whole model", model_of))
    ]
    note = "Mean of each run's last steps. All blocks: the root of the sum of their squares."
    spec = Figure("stationarity-end", "Stationarity per block at the end", UNIT, note, wide=True)
    return end_figure(spec, both, _stationarity, lambda values: ordered_colours("o", values), UNIT, rows)


def _last(arm: Arm, pick: Callable[[RunMetrics], Mapping[int, float]]) -> Spread:
    values = []
    for metrics in arm.metrics:
        told = pick(metrics)
        last = metrics.steps[-end_window(len(metrics.steps)) :]
        values.append(mean(told[step.step] for step in last if step.step in told))
    return spread(values)
