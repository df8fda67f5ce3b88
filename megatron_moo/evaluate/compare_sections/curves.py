"""Losses over time, and their difference to the reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import MOST_BANDS, Both, held_out, series, trained
from megatron_moo.evaluate.compare_sections.words import BITS
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.charts.scale import linear
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.sections.room import Section


def curves_section(both: Both) -> Section:
    """Loss curves per arm, and the difference over time."""
    lead = (
        f"Lines are means over the runs of a recipe, bands (of {MOST_BANDS} recipes at most) reach from the lowest to "
        "the highest run. A difference that stands at the end only may be chance; one that stands from early on and "
        "stays is worth more runs."
    )
    figures = [
        _curve(
            both, "train-curve", "Training loss, mean of seen languages", "nats per token", trained(both.seen)
        ),
        _curve(both, "seen-curve", "Held-out, mean of seen languages", BITS, held_out(both.seen)),
    ]
    if both.unseen:
        figures.append(
            _curve(both, "unseen-curve", "Held-out, mean of unseen languages", BITS, held_out(both.unseen))
        )
    figures.append(_difference_curve(both))
    return Section("curves", "Loss curves", lead, tuple(figures))


def _curve(
    both: Both, plot: str, title: str, unit: str, pick: Callable[[RunMetrics], Mapping[int, float]]
) -> Markup:
    x, lines, note = series(both.arms, pick)
    if plot != "train-curve":
        note = note.replace("step", "validation")
    return line_chart(Figure(plot, title, unit, note, height=280), x, lines, points=len(x) <= 30)


def _difference_curve(both: Both) -> Markup:
    """Mean over pairs at every validation, seen and unseen."""
    reference = {
        run.seed: metrics for run, metrics in zip(both.arms[0].runs, both.arms[0].metrics, strict=True)
    }
    steps = sorted({valid.step for arm in both.arms for one in arm.metrics for valid in one.valids})
    lines = []
    for arm in both.arms[1:]:
        pairs = [
            (one, reference[run.seed])
            for run, one in zip(arm.runs, arm.metrics, strict=True)
            if run.seed in reference
        ]
        for part, tags in (("", both.seen), (", unseen", both.unseen)):
            if not tags:
                continue
            pick = held_out(tags)
            told = [(pick(ours), pick(theirs)) for ours, theirs in pairs]
            rows = np.array(
                [[a.get(step, math.nan) - b.get(step, math.nan) for step in steps] for a, b in told],
                dtype=np.float64,
            )
            name = (part.lstrip(", ") or "seen") if len(both.arms) == 2 else f"{arm.short}{part}"
            banded = len(rows) > 1 and len(both.arms) <= MOST_BANDS
            ends = (rows.min(axis=0), rows.max(axis=0)) if banded else (None, None)
            classes = f"{arm.classes.split()[0]} {'d1' if part else 'd0'}"
            lines.append(Series(name, rows.mean(axis=0), classes, *ends))
    spec = Figure(
        "difference-curve",
        f"Difference to {both.arms[0].short} over time",
        BITS,
        "Mean over pairs, bands over all of them; below 0 the recipe is better. Dashed: unseen languages.",
        height=280,
    )
    parts = [part for line in lines for part in (line.values, line.low, line.high) if part is not None]
    y = linear(np.append(np.concatenate(parts), 0.0)) if parts else None
    return line_chart(spec, np.array(steps, dtype=np.float64), lines, y=y, points=len(steps) <= 30, digits=3)
