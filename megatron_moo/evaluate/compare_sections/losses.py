"""Held-out loss of every language on all sides."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, Spread, bits_of, held_out, point, series, worst_of
from megatron_moo.evaluate.compare_sections.words import BITS, MEANS, number
from megatron_moo.report.charts.bars import panels
from megatron_moo.report.charts.forest import ForestRow, forest
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.sections.room import Section


def losses_section(both: Both) -> Section:
    """Bits per byte of every language on all sides, at the end and over time."""
    lead = (
        "Held-out text of every language, all sides beside each other. Lines reach from the lowest to the highest run "
        "of a recipe: the spread between seeds, while the differences above are taken within a seed and can be smaller."
    )
    return Section(
        "losses", "Loss per language", lead, (_languages(both), _panels(both), _losses_table(both))
    )


def _rows(both: Both) -> list[tuple[str, Callable[[Arm], Spread], bool]]:
    rows: list[tuple[str, Callable[[Arm], Spread], bool]] = [
        (tag, lambda arm, tag=tag: bits_of(arm, (tag,)), False)  # type: ignore[misc]
        for tag in (*both.seen, *both.unseen)
    ]
    rows.append((MEANS["seen"], lambda arm: bits_of(arm, both.seen), True))
    if both.unseen:
        rows.append((MEANS["unseen"], lambda arm: bits_of(arm, both.unseen), True))
    rows.append((MEANS["worst"], lambda arm: worst_of(arm, both.seen), True))
    return rows


def _languages(both: Both) -> Markup:
    rows = [
        ForestRow(name, tuple(point(arm, pick(arm)) for arm in both.arms), heavy)
        for name, pick, heavy in _rows(both)
    ]
    spec = Figure("bits-languages", "Held-out loss per language at the end", BITS, wide=True)
    return forest(spec, rows, digits=4)


def _panels(both: Both) -> Markup:
    found = [(tag, series(both.arms, held_out((tag,)))) for tag in (*both.seen, *both.unseen)]
    x = max((steps for _, (steps, _, _) in found), key=len)
    named = [(tag, lines) for tag, (steps, lines, _) in found if len(steps) == len(x)]
    note = "Mean over the runs of a recipe at every validation."
    return panels(Figure("bits-panels", "Held-out loss over time", BITS, note, wide=True), x, named)


def _losses_table(both: Both) -> Markup:
    rows: list[TableRow] = []
    foot: list[TableRow] = []
    for name, pick, heavy in _rows(both):
        cells: list[Cell] = []
        for arm in both.arms:
            values = pick(arm)
            cells += [number(values.mean), Cell(_range(values), values.low)]
        part = "" if heavy else "seen" if name in both.seen else "unseen"
        (foot if heavy else rows).append(TableRow(name, (Cell(part), *cells)))
    headings = ["language", ""]
    for arm in both.arms:
        headings += [arm.short, "runs"]
    note = "Means over all runs of a recipe, paired or not, and the lowest and highest run. Tap a heading to sort."
    return table(Figure("bits-table", "All losses", BITS, note, wide=True), headings, [*rows, *foot])


def _range(values: Spread) -> str:
    if len(values.each) < 2 or not math.isfinite(values.mean):
        return ""
    return f"{values.low:.4f} to {values.high:.4f}"
