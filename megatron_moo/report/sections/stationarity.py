"""How far each block, and the whole model, is from a point where no direction helps every objective."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import palette
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.records import Array, MooRecord
from megatron_moo.report.sections.room import Room, Section

LABEL_CHARS = 14
Picker = Callable[[MooRecord], Array]
MEANING = (
    "The norm of the shortest vector in the convex hull of the objectives' gradients: sqrt(min wᵀGw) over weights that "
    "are at least zero and sum to one. At zero no direction improves every objective to first order. It is measured in "
    "the same way whatever the method. Where every objective touches every block, the blocks' values squared add up to "
    "no more than the model's squared, since every block may choose weights of its own; where some do not (experts, "
    "vision parts), they are left out of that block, and the sum can be larger than the model's."
)


def stationarity_section(room: Room) -> Section:
    """The shortest vector in the convex hull of the gradients, per block and for the model; the update."""
    return Section("stationarity", "Stationarity", MEANING, (_model(room), _blocks(room), _update(room)))


def _model(room: Room) -> Markup:
    x, grouped = room.line_bins(room.moo_steps)
    whole = grouped.mean(np.array([moo.stationarity_model for moo in room.moos], dtype=np.float64))
    series = [Series("whole model", whole, "c7 d0")]
    if room.metrics.blocks and room.moos:
        together = np.sqrt(np.square(room.per_block(lambda moo: moo.stationarity)).sum(axis=1))
        series.append(Series("all blocks", grouped.mean(together), "c0 d0"))
    note = f"All blocks: the root of the sum of the blocks' squares. {grouped.note()}"
    spec = Figure("stationarity-model", "Whole model and all blocks", "gradient norm", note, height=300)
    return line_chart(spec, x, series, log=True, digits=3)


def _blocks(room: Room) -> Markup:
    note = "Coloured by depth, from the first block to the last; heavy line: the whole model."
    spec = Figure("stationarity-blocks", "Stationarity per block", "gradient norm", note, height=300)
    model = np.array([moo.stationarity_model for moo in room.moos], dtype=np.float64)
    return _per_block(room, spec, lambda moo: moo.stationarity, model)


def _update(room: Room) -> Markup:
    note = (
        "The combined direction before clipping and before the optimizer, which changes it. Heavy line: the whole "
        "model's, the root of the sum of the blocks' squares."
    )
    spec = Figure(
        "update-norm", "Norm of the combined direction per block", "‖d_b‖", note, height=300, wide=True
    )
    # A block that is not measured makes the whole unknown: NaN, not too small.
    whole = np.sqrt(np.square(room.per_block(lambda moo: moo.norm)).sum(axis=1)) if room.moos else None
    return _per_block(room, spec, lambda moo: moo.norm, whole)


def short_block(name: str) -> str:
    """A block's name for a label: without the decoder's prefix, the middle left out when it is long."""
    short = name.removeprefix("decoder.")
    return short if len(short) <= LABEL_CHARS else f"{short[:6]}…{short[-(LABEL_CHARS - 7) :]}"


def _per_block(room: Room, spec: Figure, pick: Picker, model: Array | None) -> Markup:
    x, grouped = room.line_bins(room.moo_steps)
    blocks = room.metrics.blocks
    table = grouped.mean(room.per_block(pick)) if room.moos else np.zeros((0, 0))
    whole = None if model is None else grouped.mean(model)
    series = block_lines(blocks, table, whole) if room.moos else []
    return line_chart(spec, x, series, log=True, digits=3)


def block_lines(blocks: tuple[str, ...], table: Array, whole: Array | None) -> list[Series]:
    """A line per block, coloured by depth, and a heavy one for the whole model where blocks are parts of it.

    Args:
        blocks: their names.
        table: ``[points, blocks]``.
        whole: ``[points]``, or None.
    """
    series = [
        Series(name, table[:, i], palette.depth(i, len(blocks)), text=short_block(name))
        for i, name in enumerate(blocks)
    ]
    if whole is not None and blocks != ("model",) and np.isfinite(whole).any():
        series.append(Series("whole model", whole, "c7 heavy"))
    return series
