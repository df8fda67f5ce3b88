"""Conflict: how often two objectives pull a block in opposite directions."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import scale
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Frame, heat_map, ordered_colours
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.sections.adaptive import changes_figure
from megatron_moo.report.sections.room import Room, Section


def conflict_section(room: Room) -> Section:
    """The rate over time, and per block over time."""
    lead = (
        "Conflict rate: the share of pairs of objectives whose gradients have a negative cosine, block by "
        "block. Directions drawn independently at random would come out negative half of the time; sampling "
        "noise moves the rate towards that half."
    )
    changed = changes_figure(room)
    figures = (_rate(room), _blocks(room), *([changed] if changed is not None else []))
    return Section("conflict", "Conflict per block", lead, figures)


def _rate(room: Room) -> Markup:
    x, grouped = room.line_bins(room.moo_steps)
    rate = grouped.mean(100 * np.array([moo.conflict_rate for moo in room.moos], dtype=np.float64))
    spec = Figure("conflict-time", "Conflict rate, all blocks", "% of pairs", grouped.note(), height=240)
    return line_chart(spec, x, [Series("all blocks", rate, "c1 d0")], zero=True, digits=3)


def _blocks(room: Room) -> Markup:
    blocks = room.metrics.blocks
    _, grouped = room.cell_bins(room.moo_steps)
    table = grouped.mean(room.per_block(lambda moo: moo.conflict)) if room.moos else np.zeros((0, 0))
    spec = Figure(
        "conflict-blocks",
        "Conflict rate per block",
        "share of pairs",
        f"Blocks from top to bottom in the model's order. {cells_note(grouped.width)}",
        height=rows_height(len(blocks)),
    )
    return heat_map(
        spec,
        [Frame("", table.T)] if room.moos else [],
        blocks,
        Axis(scale=time_axis(room)),
        ordered_colours("o", table, least=0.5),
        legend="share of pairs with a negative cosine",
    )


def time_axis(room: Room) -> scale.Scale:
    """The steps of a heat map's columns."""
    steps = room.moo_steps
    return scale.cells(steps[0].step, steps[-1].step) if steps else scale.cells(0, 1)


def cells_note(width: int) -> str:
    """What a cell is, in words."""
    return "One column a step." if width == 1 else f"Each column is the mean of {width} steps."


def rows_height(rows: int) -> int:
    """Height in pixels of a heat map with so many rows."""
    return int(min(1100, max(120, 18 * rows if rows <= 40 else 12 * rows, math.ceil(220 / max(1, rows)))))
