"""What the sides were told and what they ran on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from markupsafe import Markup

from megatron_moo.evaluate.arms import Both
from megatron_moo.evaluate.compare import Run
from megatron_moo.evaluate.compare_sections.words import number
from megatron_moo.report import units
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.page import state
from megatron_moo.report.sections.room import Section
from megatron_moo.report.summary import mean


def recipes_section(both: Both) -> Section:
    """What the sides were told, what they ran on, and every run."""
    lead = "Flags that are not alike in all runs, the packages, and the runs themselves."
    return Section(
        "recipes", "Recipes and versions", lead, (_recipes(both), _versions(both), _runs_table(both))
    )


def _by_arm(both: Both, pick: Callable[[Run], Mapping[str, object]], only_different: bool) -> list[TableRow]:
    keys = sorted({key for arm in both.arms for run in arm.runs for key in pick(run)})
    rows = []
    for key in keys:
        told = [
            " | ".join(dict.fromkeys(_words(pick(run).get(key)) for run in arm.runs)) for arm in both.arms
        ]
        if not only_different or len(set(told)) > 1 or any("|" in words for words in told):
            rows.append(TableRow(key, tuple(Cell(words) for words in told)))
    return rows


def _words(value: object) -> str:
    if value is None:
        return "–"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _recipes(both: Both) -> Markup:
    rows = _by_arm(both, lambda run: run.flags, only_different=True)
    rows.append(
        TableRow("seed", tuple(Cell(" ".join(str(run.seed) for run in arm.runs)) for arm in both.arms))
    )
    rows.append(
        TableRow(
            "data",
            tuple(Cell(" | ".join(dict.fromkeys(run.short_data for run in arm.runs))) for arm in both.arms),
        )
    )
    spec = Figure("recipes-table", "Where the recipes differ", wide=True)
    return table(spec, ("flag", *(arm.short for arm in both.arms)), rows)


def _versions(both: Both) -> Markup:
    rows = _by_arm(both, lambda run: run.versions, only_different=False)
    spec = Figure("versions-table", "Versions", wide=True)
    if not rows:
        return frame.missing(spec, "The runs' recipes name no versions.")
    return table(spec, ("package", *(arm.short for arm in both.arms)), rows)


def _runs_table(both: Both) -> Markup:
    rows = []
    for arm in both.arms:
        for run, metrics, summary in zip(arm.runs, arm.metrics, arm.summaries, strict=True):
            seen = mean(run.bits.get(tag, math.nan) for tag in run.seen)
            speed = Cell(units.count(summary.tokens_per_s), summary.tokens_per_s)
            rows.append(
                TableRow(
                    run.name,
                    (
                        Cell(arm.short), Cell(str(run.seed), run.seed), Cell(state(metrics)),
                        Cell(units.count(run.tokens), run.tokens), number(seen), speed,
                    ),
                    arm.classes,
                )
            )  # fmt: skip
    headings = ("run", "recipe", "seed", "state", "tokens", "bits per byte, seen", "tokens/s, median")
    return table(Figure("runs-table", "Runs", wide=True), headings, rows)
