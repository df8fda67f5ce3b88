"""Differences to the reference, pair by pair."""

from __future__ import annotations

import math

from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both
from megatron_moo.evaluate.compare import Difference
from megatron_moo.evaluate.compare_sections.words import BITS, MEANS, number, shown
from megatron_moo.report.charts.forest import ForestRow, Point, forest
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.sections.room import Section


def difference_section(both: Both) -> Section:
    """Forest plots of every arm against the reference, and their numbers."""
    reference = both.arms[0].short
    lead = (
        f"Bits per byte of held-out text at the last validation, each recipe minus {reference}, run by run over "
        "pairs of one seed: left of the line it is better. Heavy: mean difference, with a 95 % bootstrap interval "
        "over pairs; faint: the pairs themselves. No interval is corrected for the number of rows or recipes, and none "
        "says anything about other data, sizes or lengths of training. Worst seen: each run's highest value; bits per "
        "byte are comparable between models, not between scripts: which language is worst may say more of its script."
    )
    figures = [_forest(both, arm, i) for i, arm in enumerate(both.arms[1:])]
    return Section("difference", "Differences", lead, (*figures, _difference_table(both)))


def _forest(both: Both, arm: Arm, index: int) -> Markup:
    rows = []
    for what, item in both.found.differences[arm.name].items():
        ends = (item.low, item.high) if item.pairs > 1 else (math.nan, math.nan)
        point = Point(arm.short, item.mean, arm.classes, *ends, single=item.each if item.pairs > 1 else ())
        rows.append(ForestRow(MEANS.get(what, what), (point,), heavy=what in MEANS))
    spec = Figure(
        f"forest-{index}",
        f"{arm.name} minus {both.arms[0].name}",
        BITS,
        f"Left of the line: {arm.short} is better. Right: {both.arms[0].short} is better.",
        wide=True,
    )
    return forest(spec, rows, reference=0.0, digits=4, sign=True)


def _difference_table(both: Both) -> Markup:
    rows = []
    for arm in both.arms[1:]:
        for what, item in both.found.differences[arm.name].items():
            cells = (
                Cell(arm.short), number(item.base), number(item.base + item.mean), Cell(shown(item.mean), item.mean),
                Cell(_interval(item), item.low), Cell(str(item.pairs), item.pairs),
                Cell("  ".join(shown(one) for one in item.each)),
            )  # fmt: skip
            rows.append(TableRow(MEANS.get(what, what), cells, arm.classes))
    spec = Figure(
        "difference-table",
        "All differences",
        BITS,
        "Reference and recipe: means over the paired runs. Each pair: in the order of seeds. Tap a heading to sort.",
        wide=True,
    )
    headings = ("", "recipe", "reference", "recipe's", "difference", "95 %", "pairs", "each pair")
    return table(spec, headings, rows)


def _interval(item: Difference) -> str:
    return "one pair" if item.pairs < 2 else f"{shown(item.low)} to {shown(item.high)}"
