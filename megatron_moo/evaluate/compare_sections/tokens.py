"""What each side was shown: asked and drawn token shares."""

from __future__ import annotations

import math

from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, Spread, point, spread
from megatron_moo.evaluate.compare_sections.words import number
from megatron_moo.report import units
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.forest import ForestRow, forest
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.sections.room import Section
from megatron_moo.report.summary import mean


def tokens_section(both: Both) -> Section:
    """Token shares that each side drew."""
    lead = (
        "Tokens that entered the training loss, as a share of each run's own. Recipes with other shares saw other "
        "data: a difference between them is one of sampling too."
    )
    return Section("tokens", "Token shares", lead, (_shares(both), _tokens_table(both)))


def _share(arm: Arm, tag: str) -> Spread:
    return spread(
        [100 * one.tokens.get(tag, 0.0) / (sum(one.tokens.values()) or math.nan) for one in arm.summaries]
    )


def _token_tags(both: Both) -> list[str]:
    return list(dict.fromkeys(tag for arm in both.arms for one in arm.summaries for tag in one.tokens))


def _shares(both: Both) -> Markup:
    rows = [
        ForestRow(tag, tuple(point(arm, _share(arm, tag)) for arm in both.arms)) for tag in _token_tags(both)
    ]
    spec = Figure("token-shares", "Share of the tokens", "%, mean and spread over the runs", wide=True)
    return (
        forest(spec, rows, digits=1, zero=True)
        if rows
        else frame.missing(spec, "Not measured in these runs.")
    )


def _tokens_table(both: Both) -> Markup:
    rows = []
    for tag in _token_tags(both):
        cells = []
        for arm in both.arms:
            tokens = mean(one.tokens.get(tag, 0.0) for one in arm.summaries)
            asked = 100 * mean(one.drawn.get(tag, {}).get("asked", math.nan) for one in arm.summaries)
            cells += [number(asked, 1), number(_share(arm, tag).mean, 1), Cell(units.count(tokens), tokens)]
        rows.append(TableRow(tag, tuple(cells)))
    headings = ["language"]
    for arm in both.arms:
        headings += [f"{arm.short}: asked %", "drawn %", "tokens a run"]
    return table(Figure("tokens-table", "Asked and drawn", "means over runs", wide=True), headings, rows)
