"""Numbers of blocks, as means over the runs of a recipe: over time, at the end, and against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, point, spread
from megatron_moo.report.charts import frame, scale
from megatron_moo.report.charts.binning import bins
from megatron_moo.report.charts.forest import ForestRow, forest
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Colours, Frame, heat_map, signed_colours
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import Array, MooRecord
from megatron_moo.report.sections.conflict import cells_note, rows_height
from megatron_moo.report.sections.room import CELLS, Room
from megatron_moo.report.summary import end_window, mean

MOST_ROWS = 48  # blocks; more of them become a heat map
Picker = Callable[[MooRecord], Array]


@dataclass(frozen=True)
class Table:
    """``values[i, j]`` is the number of block ``rows[j]`` at ``steps[i]``, NaN where nothing was measured."""

    steps: tuple[int, ...]
    rows: tuple[str, ...]
    values: Array

    def at(self, steps: Sequence[int], rows: Sequence[str]) -> Array:
        """``[steps, rows]``; rows that this table lacks are NaN."""
        times = {step: i for i, step in enumerate(self.steps)}
        places = {row: i for i, row in enumerate(self.rows)}
        found = np.full((len(steps), len(rows)), np.nan)
        known = [(j, places[row]) for j, row in enumerate(rows) if row in places]
        for i, step in enumerate(steps):
            for j, place in known:
                found[i, j] = self.values[times[step], place]
        return found


def nanmean(stack: Array) -> Array:
    """Mean over the first axis of what is finite; NaN where nothing is."""
    return bins(len(stack), 1).mean(stack)[0]


def common(steps: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Steps that all have: a step that one run lacks would make a mean jump."""
    return tuple(sorted(set.intersection(*(set(one) for one in steps)))) if steps else ()


def over_time(arm: Arm, pick: Picker) -> Table:
    """Of every block at the steps that all runs of ``arm`` measured, mean over runs."""
    told = [_table(room, pick) for room in arm.rooms]
    steps = common([one.steps for one in told])
    rows = tuple(dict.fromkeys(row for one in told for row in one.rows))
    return Table(steps, rows, nanmean(np.array([one.at(steps, rows) for one in told])))


def _table(room: Room, pick: Picker) -> Table:
    return Table(tuple(step.step for step in room.moo_steps), room.metrics.blocks, room.per_block(pick))


def map_of(spec: Figure, table: Table, colours: Colours, legend: str) -> Markup:
    """A heat map of blocks over time."""
    return _map(spec, table.steps, table.rows, [("", table.values)], colours, legend)


def _map(
    spec: Figure,
    steps: Sequence[int],
    rows: tuple[str, ...],
    named: Sequence[tuple[str, Array]],
    colours: Colours,
    legend: str,
) -> Markup:
    if not steps or not rows:
        return frame.missing(spec, "Not measured in these runs.")
    grouped = bins(len(steps), CELLS)
    note = f"{spec.note} {cells_note(grouped.width)}".strip()
    axis = Axis(scale=scale.cells(steps[0], steps[-1]))
    frames = [Frame(name, grouped.mean(values).T) for name, values in named]
    spec = replace(spec, note=note, height=rows_height(len(rows)))
    return heat_map(spec, frames, rows, axis, colours, legend=legend)


def difference_map(spec: Figure, both: Both, tables: Sequence[Table], legend: str) -> Markup:
    """Every recipe minus the reference, a frame each; ``tables`` are those of the arms in their order."""
    reference = tables[0]
    alike = [
        (arm, table)
        for arm, table in zip(both.arms[1:], tables[1:], strict=True)
        if table.rows == reference.rows and table.steps
    ]
    steps = common([reference.steps, *(table.steps for _, table in alike)])
    if not alike or not steps:
        return frame.missing(
            spec, f"No recipe has the blocks and steps of {both.arms[0].short}: there is no difference."
        )
    base = reference.at(steps, reference.rows)
    named = [(f"{arm.short} minus {both.arms[0].short}", t.at(steps, t.rows) - base) for arm, t in alike]
    colours = signed_colours(np.concatenate([values.ravel() for _, values in named]))
    if len(named) == 1:
        named = [("", named[0][1])]
    return _map(spec, steps, reference.rows, named, colours, legend)


def at_end(metrics: RunMetrics, block: str, pick: Picker) -> float:
    """A block's mean over the run's last steps."""
    last = [step.moo for step in metrics.steps[-end_window(len(metrics.steps)) :] if step.moo]
    return mean(float(pick(moo)[moo.blocks.index(block)]) for moo in last if block in moo.blocks)


def end_figure(
    spec: Figure,
    both: Both,
    pick: Picker,
    colours: Callable[[Array], Colours],
    legend: str,
    heavy: Sequence[ForestRow] = (),
) -> Markup:
    """Every block at the end of the runs, the recipes beside each other; of many blocks a heat map.

    Args:
        spec: name, words and size.
        both: the sides.
        pick: a number per block.
        colours: of the heat map, from its values.
        legend: what a value is, in words.
        heavy: rows of the whole model, under the blocks'.
    """
    blocks = tuple(dict.fromkeys(block for arm in both.arms for one in arm.metrics for block in one.blocks))
    told = [[[at_end(one, block, pick) for one in arm.metrics] for block in blocks] for arm in both.arms]
    if len(blocks) <= MOST_ROWS:
        rows = [
            ForestRow(block, tuple(point(arm, spread(told[j][i])) for j, arm in enumerate(both.arms)))
            for i, block in enumerate(blocks)
        ]
        rows += heavy if rows else ()
        return forest(spec, rows, zero=True) if rows else frame.missing(spec, "Not measured in these runs.")
    values = np.array([[mean(of[i]) for of in told] for i in range(len(blocks))])
    return heat_map(
        replace(spec, height=rows_height(len(blocks))), [Frame("", values)], blocks,
        Axis(names=tuple(arm.short for arm in both.arms)), colours(values), legend=legend,
    )  # fmt: skip
