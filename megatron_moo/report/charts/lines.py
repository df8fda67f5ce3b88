"""Line charts over steps: many lines with direct labels, bands, and stacked areas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import UNITS, Figure, Label, coordinate
from megatron_moo.report.charts.scale import Scale, linear, logarithmic, steps
from megatron_moo.report.records import Array

MOST_LABELS = 24  # with more lines only the outermost are named; tooltips name all


@dataclass(frozen=True)
class Series:
    """One line: ``values[i]`` at ``x[i]``, NaN leaves a point out; ``low`` and ``high`` draw a band."""

    name: str
    values: Array
    classes: str
    low: Array | None = None
    high: Array | None = None
    not_finite: tuple[float, ...] = field(default=())  # steps whose value was NaN or infinite
    text: str = ""  # a short name for the label


def line_chart(
    spec: Figure,
    x: Array,
    series: Sequence[Series],
    *,
    log: bool = False,
    zero: bool = False,
    y: Scale | None = None,
    points: bool = False,
    digits: int = 4,
) -> Markup:
    """Lines over steps with a label at each line's end.

    Args:
        spec: name, words and size.
        x: steps, [n].
        series: the lines.
        log: logarithmic y axis where the values span enough.
        zero: let a linear y axis start at zero.
        y: the axis, when it is shared with another chart.
        points: mark every point (for few points).
        digits: significant digits in tooltips.
    """
    if not any(np.isfinite(line.values).any() for line in series):
        return frame.missing(spec, "Not measured in this run.")
    everything = np.concatenate([part for line in series for part in _parts(line)])
    x_scale, y_scale = steps(x), y or (logarithmic(everything) if log else linear(everything, zero=zero))
    labels = _labels(series, y_scale)
    drawn = [_line(line, x, x_scale, y_scale, points) for line in _muted(series, labels)]
    if y_scale.log:
        spec = replace(spec, unit=f"{spec.unit}, log scale".lstrip(", "))
    svg = _svg(
        Markup("").join([frame.grid(y_scale), *[_band(s, x, x_scale, y_scale) for s in series], *drawn])
    )
    marks = Markup("").join(_mark(line, step, x_scale) for line in series for step in line.not_finite)
    side = frame.direct_labels(labels, spec.height)
    data = {
        "x": frame.numbers(x, 8),
        "d": [x_scale.low, x_scale.high],
        "s": [_data(line, y_scale, digits) for line in series],
    }
    return frame.figure(spec, plot_body(spec, x_scale, y_scale, svg + marks, side), data)


def stack_chart(spec: Figure, x: Array, series: Sequence[Series]) -> Markup:
    """Stacked areas: what a total is made of over time; absent values count as zero."""
    if not any(np.isfinite(line.values).any() for line in series):
        return frame.missing(spec, "Not measured in this run.")
    layers = np.cumsum([np.nan_to_num(line.values, nan=0.0, posinf=0.0) for line in series], axis=0)
    x_scale, y_scale = steps(x), linear(layers[-1], zero=True)
    areas, labels, below = [], [], np.zeros_like(x)
    for line, top in zip(series, layers, strict=True):
        wide, upper, lower = _wide(x, top, below)
        path = _area(x_scale.share(wide), y_scale.share(upper), y_scale.share(lower))
        areas.append(Markup('<path class="ar {}" data-n="{}" d="{}"/>').format(line.classes, line.name, path))
        middle = 1 - y_scale.place(float(top[-1] + below[-1]) / 2)
        labels.append(Label(line.name, middle, line.classes))
        below = top
    body = _svg(Markup("").join([*areas, frame.grid(y_scale)]))
    data = {
        "x": frame.numbers(x, 8),
        "d": [x_scale.low, x_scale.high],
        "s": [{"n": s.name, "c": s.classes, "v": frame.numbers(s.values)} for s in series],
    }
    side = frame.direct_labels(labels, spec.height)
    return frame.figure(spec, plot_body(spec, x_scale, y_scale, body, side), data)


def plot_body(spec: Figure, x: Scale, y: Scale, inside: Markup, labels: Markup) -> Markup:
    """The plotting area with its ticks and labels."""
    return Markup(
        '<div class="plot" style="--h:{}px"><div class="ys">{}</div><div class="area">{}</div>{}{}</div>'
    ).format(spec.height, frame.y_ticks(y), inside, labels, frame.x_axis(x, spec.axis))


def path(x: Array, y: Array) -> str:
    """An SVG path through the finite points (shares of the area, y upwards)."""
    known = np.isfinite(x) & np.isfinite(y)
    pairs = [f"{coordinate(a)} {coordinate(1 - b)}" for a, b in zip(x[known], y[known], strict=True)]
    if len(pairs) == 1:
        return f"M{pairs[0]}h0"  # a lone point: round line ends make it a dot
    return f"M{'L'.join(pairs)}" if pairs else ""


def _svg(inside: Markup) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {0} {0}" preserveAspectRatio="none" aria-hidden="true">{1}</svg>'
    ).format(UNITS, inside)


def _parts(line: Series) -> list[Array]:
    return [part for part in (line.values, line.low, line.high) if part is not None]


def _line(line: Series, x: Array, x_scale: Scale, y_scale: Scale, points: bool) -> Markup:
    across, up = x_scale.share(x), y_scale.share(line.values)
    drawn = Markup('<path class="ln {}" data-n="{}" d="{}"/>').format(
        line.classes, line.name, path(across, up)
    )
    if points or np.isfinite(up).sum() == 1:
        known = np.isfinite(up)
        dots = "".join(
            f"M{coordinate(a)} {coordinate(1 - b)}h0" for a, b in zip(across[known], up[known], strict=True)
        )
        drawn += Markup('<path class="pt {}" data-n="{}" d="{}"/>').format(line.classes, line.name, dots)
    return drawn


def _band(line: Series, x: Array, x_scale: Scale, y_scale: Scale) -> Markup:
    if line.low is None or line.high is None:
        return Markup("")
    known = np.isfinite(line.low) & np.isfinite(line.high)
    shape = _area(x_scale.share(x[known]), y_scale.share(line.high[known]), y_scale.share(line.low[known]))
    return Markup('<path class="bd {}" data-n="{}" d="{}"/>').format(line.classes, line.name, shape)


def _area(x: Array, upper: Array, lower: Array) -> str:
    if not x.size:
        return ""
    there = [f"{coordinate(a)} {coordinate(1 - b)}" for a, b in zip(x, upper, strict=True)]
    back = [f"{coordinate(a)} {coordinate(1 - b)}" for a, b in zip(x[::-1], lower[::-1], strict=True)]
    return f"M{'L'.join(there + back)}z"


def _wide(x: Array, upper: Array, lower: Array) -> tuple[Array, Array, Array]:
    """A single step gets a width, so that its area can be seen."""
    if x.size > 1:
        return x, upper, lower
    return np.array([x[0] - 0.5, x[0] + 0.5]), np.repeat(upper, 2), np.repeat(lower, 2)


def _mark(line: Series, step: float, x_scale: Scale) -> Markup:
    return Markup(
        '<span class="nf {}" style="left:{:.2f}%" title="{}: not finite at step {:.0f}">×</span>'
    ).format(line.classes, 100 * x_scale.place(step), line.name, step)


def _labels(series: Sequence[Series], y_scale: Scale) -> list[Label]:
    """A label at each line's last point; of too many lines only the outermost keep theirs."""
    ends = []
    for line in series:
        known = line.values[np.isfinite(y_scale.share(line.values))]
        if known.size:
            ends.append(Label(line.name, 1 - y_scale.place(float(known[-1])), line.classes, line.text))
    if len(ends) <= MOST_LABELS:
        return ends
    ranked = sorted(ends, key=lambda label: label.top)
    half = MOST_LABELS // 4
    return [*ranked[:half], *ranked[-half:]]


def _muted(series: Sequence[Series], labels: Sequence[Label]) -> list[Series]:
    """Lines without a label step back behind those with one."""
    named = {label.name for label in labels}
    back = [replace(line, classes=f"{line.classes} mute") for line in series if line.name not in named]
    return [*back, *(line for line in series if line.name in named)]


def _data(line: Series, y_scale: Scale, digits: int) -> dict[str, object]:
    shares = y_scale.share(line.values)
    data: dict[str, object] = {
        "n": line.name,
        "c": line.classes,
        "v": frame.numbers(line.values, digits),
        "y": [round(float(share), 3) if math.isfinite(share) else None for share in shares],
    }
    if line.low is not None and line.high is not None:
        data |= {"lo": frame.numbers(line.low, 3), "hi": frame.numbers(line.high, 3)}
    return data
