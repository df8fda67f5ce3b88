"""How often gradients point against each other, on every side."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import Both, series
from megatron_moo.evaluate.compare_sections.blocks import difference_map, end_figure, map_of, over_time
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import ordered_colours
from megatron_moo.report.charts.lines import line_chart
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import Array, MooRecord
from megatron_moo.report.sections.room import Section

LEGEND = "share of pairs with a negative cosine"


def conflict_section(both: Both) -> Section:
    """The rate over time, per block over time for every recipe, and per block at the end."""
    lead = (
        "Every run measures conflict the same way, whatever its method does about it: the share of (block, pair of "
        "objectives) with a negative cosine. Directions drawn independently at random would come out negative half of "
        "the time. Where losses differ, so does the place at which gradients are taken: less conflict is no merit by "
        "itself."
    )
    tables = [over_time(arm, _conflict) for arm in both.arms]
    colours = ordered_colours("o", np.concatenate([one.values.ravel() for one in tables]), least=0.5)
    maps = [
        map_of(
            Figure(f"conflict-map-{i}", f"{arm.short}: conflict rate per block", "share of pairs"),
            table, colours, LEGEND,
        )
        for i, (arm, table) in enumerate(zip(both.arms, tables, strict=True))
    ]  # fmt: skip
    against = Figure(
        "conflict-map-difference",
        f"Conflict rate per block, minus {both.arms[0].short}",
        "share of pairs",
        "Blue: more conflict than in the reference, orange: less.",
        wide=len(both.arms) % 2 == 0,
    )
    figures = (_rate(both), *maps, difference_map(against, both, tables, f"{LEGEND}, difference"), _end(both))
    return Section("conflict", "Conflict", lead, figures)


def _conflict(moo: MooRecord) -> Array:
    return moo.conflict


def _rate(both: Both) -> Markup:
    def pick(metrics: RunMetrics) -> Mapping[int, float]:
        return {step.step: 100 * step.moo.conflict_rate for step in metrics.steps if step.moo}

    x, lines, note = series(both.arms, pick)
    spec = Figure("conflict-time", "Conflict rate, all blocks", "% of pairs", note, height=280, wide=True)
    return line_chart(spec, x, lines, zero=True, digits=3)


def _end(both: Both) -> Markup:
    note = "Mean of each run's last steps. Where a recipe has no such block, it has no point."
    spec = Figure("conflict-blocks", "Conflict rate per block at the end", "share of pairs", note, wide=True)
    return end_figure(spec, both, _conflict, lambda values: ordered_colours("o", values, least=0.5), LEGEND)
