"""The weights that the method gave to each objective."""

from __future__ import annotations

import math
import warnings

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts.bars import small_multiples
from megatron_moo.report.charts.binning import bins
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Frame, heat_map, ordered_colours
from megatron_moo.report.charts.lines import Series
from megatron_moo.report.records import Array
from megatron_moo.report.sections.conflict import cells_note, rows_height, time_axis
from megatron_moo.report.sections.room import Room, Section
from megatron_moo.report.summary import end_window

MOST_PANELS = 30  # more objectives than this are shown as a heat map over time


def weights_section(room: Room) -> Section:
    """Weights over time per objective, and per block at the end."""
    lead = (
        "A block's update is the weighted sum of the objectives' gradients. Methods differ in scale: some "
        "weights sum to one, others to the number of objectives, so compare their proportions."
    )
    table = _weights(room)
    over_time = _panels(room, table) if len(room.metrics.objectives) <= MOST_PANELS else _heat(room, table)
    return Section("weights", "Weights", lead, (over_time, _by_block(room, table)))


def _weights(room: Room) -> Array:
    """[steps, blocks, objectives], NaN where there is none."""
    names = {name: i for i, name in enumerate(room.metrics.objectives)}
    blocks = {name: i for i, name in enumerate(room.metrics.blocks)}
    table = np.full((len(room.moos), len(blocks), len(names)), math.nan)
    for i, (step, moo) in enumerate(zip(room.moo_steps, room.moos, strict=True)):
        columns = [(j, names[name]) for j, name in enumerate(step.objectives) if name in names]
        for row, block in enumerate(moo.blocks):
            for source, target in columns:
                table[i, blocks[block], target] = moo.weights[row, source]
    return table


def _panels(room: Room, table: Array) -> Markup:
    x, grouped = room.line_bins(room.moo_steps)
    low, high = (grouped.mean(_over_blocks(table, q)) for q in (0.1, 0.9))
    middle = grouped.mean(_over_blocks(table, None))
    series = [
        Series(name, middle[:, i], room.colours[name], low=low[:, i], high=high[:, i])
        for i, name in enumerate(room.metrics.objectives)
    ]
    uniform = _uniform(table)
    spec = Figure(
        "weights-time",
        "Weight per objective over time",
        "mean over blocks; the band holds 80 % of them",
        f"Dotted: equal weights of the same sum. The number is the last point. {grouped.note()}",
        wide=True,
    )
    return small_multiples(spec, x, series, reference=uniform)


def _heat(room: Room, table: Array) -> Markup:
    _, grouped = room.cell_bins(room.moo_steps)
    values = grouped.mean(_over_blocks(table, None))
    spec = Figure(
        "weights-time",
        "Weight per objective over time",
        "mean over blocks",
        cells_note(grouped.width),
        height=rows_height(len(room.metrics.objectives)),
        wide=True,
    )
    rows = room.metrics.objectives
    axis = Axis(scale=time_axis(room))
    return heat_map(spec, [Frame("", values.T)], rows, axis, ordered_colours("b", values), legend="weight")


def _by_block(room: Room, table: Array) -> Markup:
    blocks = room.metrics.blocks
    last = table[-end_window(len(room.steps)) :]
    average = bins(len(last), 1).mean(last)[0] if len(last) else np.zeros((0, 0))
    spec = Figure(
        "weights-blocks",
        "Weight per block and objective",
        f"mean of the last {len(last)} steps" if len(last) != 1 else "last step",
        "A row is one block's own set of weights; with one set for the whole model all rows would be alike.",
        height=rows_height(len(blocks)),
        wide=True,
    )
    frames = [Frame("", average)] if len(last) else []
    columns = Axis(names=room.metrics.objectives)
    return heat_map(spec, frames, blocks, columns, ordered_colours("b", average), legend="weight")


def _over_blocks(table: Array, quantile: float | None) -> Array:
    """Mean or quantile over the blocks, [steps, objectives]."""
    with warnings.catch_warnings():  # an objective absent from all blocks of a step has no weight: NaN
        warnings.simplefilter("ignore", category=RuntimeWarning)
        if quantile is None:
            return np.nanmean(table, axis=1)
        return np.asarray(np.nanquantile(table, quantile, axis=1), dtype=np.float64)


def _uniform(table: Array) -> float:
    """The mean of all weights: what each would be if all were equal with the same sum."""
    known = table[np.isfinite(table)]
    return float(known.mean()) if known.size else math.nan
