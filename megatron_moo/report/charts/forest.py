"""Forest plots: a row per language, a point with its interval per group of runs, and a line that means nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import UNITS, Figure, coordinate
from megatron_moo.report.charts.scale import Scale, linear

ROW = 24  # pixels of a row with one point
MORE = 9  # pixels that every further point of a row needs
TICKS = 4


@dataclass(frozen=True)
class Point:
    """One value of a row; ``low`` and ``high`` draw its interval, ``single`` faint marks for what it is the mean of."""

    name: str
    value: float
    classes: str
    low: float = math.nan
    high: float = math.nan
    single: tuple[float, ...] = ()


@dataclass(frozen=True)
class ForestRow:
    """A row; ``heavy`` ones are means over others."""

    name: str
    points: tuple[Point, ...]
    heavy: bool = False


def forest(
    spec: Figure,
    rows: Sequence[ForestRow],
    *,
    reference: float = math.nan,
    digits: int = 3,
    sign: bool = False,
    zero: bool = False,
) -> Markup:
    """Rows from top to bottom on one axis; a row of one point has its numbers written beside it.

    Args:
        spec: name, words and width; the height follows from the rows.
        rows: what is drawn; values that are not finite are left out and written as a dash.
        reference: where the upright line stands.
        digits: decimals of the numbers.
        sign: write a plus too.
        zero: let the axis reach zero.
    """
    values = np.array([v for row in rows for p in row.points for v in (p.value, p.low, p.high, *p.single)])
    if not np.isfinite(values).any():
        return frame.missing(spec, "Not measured in these runs.")
    scale = linear(np.append(values, reference), zero=zero, wanted=TICKS)
    most = max(len(row.points) for row in rows)
    height = (ROW + MORE * (most - 1)) * len(rows)
    drawn = Markup("").join(_row(row, i, len(rows), scale) for i, row in enumerate(rows))
    line = Markup("")
    if math.isfinite(reference):
        line = Markup('<path class="zero" d="M{} 0v{}"/>').format(coordinate(scale.place(reference)), UNITS)
    grid = "".join(f"M{coordinate(scale.place(tick))} 0v{UNITS}" for tick in scale.ticks)
    svg = Markup(
        '<svg viewBox="0 0 {0} {0}" preserveAspectRatio="none" aria-hidden="true">'
        '<path class="grid" d="{1}"/>{2}{3}</svg>'
    ).format(UNITS, grid, line, drawn)
    body = Markup(
        '<div class="forest" style="--h:{}px;--chars:{}"><div class="rows">{}</div><div class="area">{}</div>{}'
        '<div class="xs">{}</div></div>'
    ).format(
        height,
        min(24, max(len(row.name) for row in rows) + 1),
        _names(rows),
        svg,
        _numbers(rows, digits, sign) if most == 1 else Markup("<div></div>"),
        frame.x_ticks(scale),
    )
    data = {
        "forest": [
            {
                "n": row.name,
                "s": [
                    [p.name, written(p.value, digits, sign), _interval(p, digits, sign)] for p in row.points
                ],
            }
            for row in rows
        ]
    }
    named = frame.keys((p.name, p.classes) for row in rows for p in row.points) if most > 1 else Markup("")
    return frame.figure(spec, named + body, data)


def written(value: float, digits: int, sign: bool) -> str:
    """A number with a true minus, a dash for none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _interval(point: Point, digits: int, sign: bool) -> str:
    if not (math.isfinite(point.low) and math.isfinite(point.high)):
        return ""
    return f"{written(point.low, digits, sign)} … {written(point.high, digits, sign)}"


def _row(row: ForestRow, index: int, count: int, scale: Scale) -> Markup:
    parts = []
    weight = " heavy" if row.heavy else ""
    for number, point in enumerate(row.points):
        up = coordinate((index + (number + 1) / (len(row.points) + 1)) / count)
        singles = "".join(f"M{coordinate(scale.place(v))} {up}h0" for v in point.single if math.isfinite(v))
        if singles:
            parts.append(
                Markup('<path class="sg {}" data-n="{}" d="{}"/>').format(point.classes, point.name, singles)
            )
        if math.isfinite(point.low) and math.isfinite(point.high):
            low, high = scale.place(point.low), scale.place(point.high)
            parts.append(
                Markup('<path class="ci {}{}" data-n="{}" d="M{} {}H{}"/>').format(
                    point.classes, weight, point.name, coordinate(low), up, coordinate(high)
                )
            )
        if math.isfinite(point.value):
            place = coordinate(scale.place(point.value))
            parts.append(
                Markup('<path class="pt {}{}" data-n="{}" d="M{} {}h0"/>').format(
                    point.classes, weight, point.name, place, up
                )
            )
    return Markup("").join(parts)


def _names(rows: Sequence[ForestRow]) -> Markup:
    return Markup("").join(
        Markup('<span class="{2}" style="top:{1:.2f}%" title="{0}">{0}</span>').format(
            row.name, 100 * (i + 0.5) / len(rows), "heavy" if row.heavy else ""
        )
        for i, row in enumerate(rows)
    )


def _numbers(rows: Sequence[ForestRow], digits: int, sign: bool) -> Markup:
    cells = Markup("").join(
        Markup('<span class="{}" style="top:{:.2f}%">{} <small>{}</small></span>').format(
            "heavy" if row.heavy else "",
            100 * (i + 0.5) / len(rows),
            written(row.points[0].value, digits, sign),
            _interval(row.points[0], digits, sign),
        )
        for i, row in enumerate(rows)
    )
    return Markup('<div class="vals">{}</div>').format(cells)
