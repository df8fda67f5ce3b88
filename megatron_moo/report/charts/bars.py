"""Bars and small multiples: shares of languages, one little line chart for each objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import UNITS, Figure, coordinate
from megatron_moo.report.charts.lines import Series, path
from megatron_moo.report.charts.scale import linear, steps, tick_text
from megatron_moo.report.records import Array

USUAL = 0.98  # of the values stay below a cut
PEAK = 2.0  # times the usual range is a peak


@dataclass(frozen=True)
class Bar:
    """One bar; ``asked`` draws a mark beside what was got."""

    name: str
    value: float
    text: str
    classes: str = "c0"
    asked: float = math.nan


def bar_chart(spec: Figure, bars: Sequence[Bar]) -> Markup:
    """Horizontal bars from zero, each with its name and its number."""
    if not bars:
        return frame.missing(spec, "Not measured in this run.")
    longest = max((v for bar in bars for v in (bar.value, bar.asked) if math.isfinite(v)), default=1.0) or 1.0
    rows = Markup("").join(_bar(bar, longest) for bar in bars)
    width = min(22, max(len(bar.name) for bar in bars) + 1)
    return frame.figure(spec, Markup('<div class="bars" style="--chars:{}">{}</div>').format(width, rows))


def _bar(bar: Bar, longest: float) -> Markup:
    asked = ""
    if math.isfinite(bar.asked):
        asked = Markup('<u style="left:{:.2f}%"></u>').format(100 * bar.asked / longest)
    share = 100 * bar.value / longest if math.isfinite(bar.value) else 0.0
    return Markup(
        '<div class="bar" data-n="{0}"><span title="{0}">{0}</span><div>'
        '<i class="{1}" style="width:{2:.2f}%"></i>{3}</div><b>{4}</b></div>'
    ).format(bar.name, bar.classes, share, asked, bar.text)


def small_multiples(
    spec: Figure, x: Array, series: Sequence[Series], *, reference: float = math.nan, digits: int = 2
) -> Markup:
    """One small chart per series on a shared axis, with its band, its name and its last value."""
    parts = [p for s in series for p in (s.values, s.low, s.high) if p is not None]
    if not parts or not any(np.isfinite(part).any() for part in parts):
        return frame.missing(spec, "Not measured in this run.")
    reference_part = np.array([reference]) if math.isfinite(reference) else np.zeros(0)
    everything = np.concatenate([*parts, reference_part])
    cut, peak = _cut(everything)
    y = linear(np.minimum(everything, cut), zero=True, wanted=3)
    across = steps(x)
    line = ""
    if math.isfinite(reference):
        line = Markup('<path class="ref" d="M0 {}h{}"/>').format(coordinate(1 - y.place(reference)), UNITS)
    cells = []
    for one in series:
        band = Markup("")
        if one.low is not None and one.high is not None:
            known = np.isfinite(one.low) & np.isfinite(one.high)
            there = path(across.share(x[known]), y.share(one.high[known]))
            back = path(across.share(x[known][::-1]), y.share(one.low[known][::-1]))
            if known.sum() > 1:
                band = Markup('<path class="bd c0" d="{}z"/>').format(there + back.replace("M", "L", 1))
        drawn = Markup('<path class="ln c0" d="{}"/>').format(path(across.share(x), y.share(one.values)))
        finite = one.values[np.isfinite(one.values)]
        last = f"{finite[-1]:.{digits}f}" if finite.size else "–"
        cells.append(
            Markup(
                '<div class="mini" data-n="{0}"><span title="{0}">{0}</span><b>{1}</b>'
                '<svg viewBox="0 0 {2} {2}" preserveAspectRatio="none" aria-hidden="true">{3}{4}{5}</svg>'
                "</div>"
            ).format(one.name, last, UNITS, band, line, drawn)
        )
    ends = Markup('<p class="axis">Every panel: {} to {}, steps {:,.0f} to {:,.0f}.{}</p>').format(
        tick_text(round(y.low, 3)),
        tick_text(round(y.high, 3)),
        across.low,
        across.high,
        f" Peaks reach {peak:.2f} and are cut off." if peak > cut else "",
    )
    return frame.figure(
        spec, Markup('<div class="minis">{}</div>').format(Markup("").join(cells)), after=ends
    )


def panels(spec: Figure, x: Array, named: Sequence[tuple[str, Sequence[Series]]]) -> Markup:
    """One small chart for each name, several lines in each, all on the same axes."""
    parts = [p for _, lines in named for s in lines for p in (s.values, s.low, s.high) if p is not None]
    if not parts or not any(np.isfinite(part).any() for part in parts):
        return frame.missing(spec, "Not measured in these runs.")
    y, across = linear(np.concatenate(parts), wanted=3), steps(x)
    cells = []
    for name, lines in named:
        drawn = Markup("").join(
            Markup('<path class="ln {}" d="{}"/>').format(s.classes, path(across.share(x), y.share(s.values)))
            for s in lines
        )
        cells.append(
            Markup(
                '<div class="mini" data-n="{0}"><span title="{0}">{0}</span>'
                '<svg viewBox="0 0 {1} {1}" preserveAspectRatio="none" aria-hidden="true">{2}</svg></div>'
            ).format(name, UNITS, drawn)
        )
    ends = Markup('<p class="axis">Every panel: {} to {}, steps {:,.0f} to {:,.0f}.</p>').format(
        tick_text(round(y.low, 3)), tick_text(round(y.high, 3)), across.low, across.high
    )
    body = Markup('<div class="minis">{}</div>').format(Markup("").join(cells))
    named_lines = ((s.name, s.classes) for _, lines in named for s in lines)
    return frame.figure(spec, frame.keys(named_lines) + body, after=ends)


def _cut(values: Array) -> tuple[float, float]:
    """Where to cut a few peaks so that they do not flatten every panel, and the highest peak."""
    finite = values[np.isfinite(values)]
    peak, usual = float(finite.max()), float(np.quantile(finite, USUAL))
    return (usual * 1.1, peak) if peak > PEAK * usual > 0 else (peak, peak)
