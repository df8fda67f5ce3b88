"""What every plot shares: the figure around it, ticks, labels that do not overlap, data for tooltips."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from markupsafe import Markup

from megatron_moo.report.charts.scale import Scale, tick_text

UNITS = 1000  # an SVG is 1000 x 1000 and stretched
LABEL_GAP = 14.0  # pixels between two direct labels


@dataclass(frozen=True)
class Figure:
    """Name, words and size of a plot.

    ``plot`` is its name in the page (``data-plot``), ``note`` says how to read it.
    """

    plot: str
    title: str
    unit: str = ""
    note: str = ""
    height: int = 300  # pixels
    wide: bool = False
    axis: str = "step"  # what the horizontal axis counts


def figure(spec: Figure, body: Markup, data: Any = None, after: Markup | str = "") -> Markup:
    """Wrap a plot's body into a figure, with ``data`` for the script."""
    return Markup(
        '<figure class="fig{wide}" data-plot="{plot}"><figcaption><b>{title}</b>{unit}</figcaption>'
        "{body}{after}{note}{data}</figure>"
    ).format(
        wide=" wide" if spec.wide else "",
        plot=spec.plot,
        title=spec.title,
        unit=Markup(' <span class="unit">{}</span>').format(spec.unit) if spec.unit else "",
        body=body,
        after=after,
        note=Markup('<p class="note">{}</p>').format(spec.note) if spec.note else "",
        data=json_script(data) if data is not None else "",
    )


def missing(spec: Figure, reason: str) -> Markup:
    """A figure that says why there is nothing to see."""
    spec = replace(spec, unit="", note="")
    return figure(spec, Markup('<p class="missing">{}</p>').format(reason))


def json_script(data: Any) -> Markup:
    """Data for the script; nothing in it can close the element or open a comment."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for sign in "<>&\u2028\u2029":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup('<script type="application/json">') + Markup(text) + Markup("</script>")


def numbers(values: Iterable[float], digits: int = 4) -> list[float | None]:
    """Values for JSON: a few significant digits, ``null`` for what is not finite."""
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values]


def coordinate(share: float) -> str:
    """An SVG coordinate."""
    return f"{UNITS * share:.1f}".removesuffix(".0")


def y_ticks(scale: Scale) -> Markup:
    """Labels on the left of a plot."""
    return Markup("").join(
        Markup('<span class="yt" style="top:{:.2f}%">{}</span>').format(
            100 * (1 - scale.place(tick)), tick_text(tick)
        )
        for tick in scale.ticks
    )


def x_ticks(scale: Scale) -> Markup:
    """Labels under a plot."""
    return Markup("").join(
        Markup('<span class="xt" style="left:{:.2f}%">{}</span>').format(
            100 * scale.place(tick), tick_text(tick)
        )
        for tick in scale.ticks
    )


def keys(named: Iterable[tuple[str, str]]) -> Markup:
    """What each colour stands for: (name, classes), each name once."""
    spans = Markup("").join(
        Markup('<span title="{0}"><i class="dot {1}"></i>{0}</span>').format(name, classes)
        for name, classes in dict(named).items()
    )
    return Markup('<div class="keys">{}</div>').format(spans)


def x_axis(scale: Scale, name: str) -> Markup:
    """Labels under a plot and the axis's name, which tooltips use too."""
    return Markup('<div class="xs" data-axis="{}">{}</div>').format(name, x_ticks(scale))


def grid(scale: Scale) -> Markup:
    """Horizontal lines at the ticks."""
    path = "".join(f"M0 {coordinate(1 - scale.place(tick))}h{UNITS}" for tick in scale.ticks)
    return Markup('<path class="grid" d="{}"/>').format(path)


@dataclass(frozen=True)
class Label:
    """A direct label: the name of a line at the line's own height (share of the height from the top)."""

    name: str
    top: float
    classes: str
    text: str = ""


def direct_labels(labels: Sequence[Label], height: int) -> Markup:
    """Labels to the right of a plot, pushed apart, each with a thin line to its place."""
    tops = spread([label.top * height for label in labels], LABEL_GAP, height)
    leaders, names = [], []
    for label, top in zip(labels, tops, strict=True):
        place = top / height
        leaders.append(
            Markup('<path class="leader {}" data-n="{}" d="M0 {}L{} {}"/>').format(
                label.classes, label.name, coordinate(label.top), UNITS, coordinate(place)
            )
        )
        names.append(
            Markup('<span class="dl {}" data-n="{}" style="top:{:.2f}%" title="{}">{}</span>').format(
                label.classes, label.name, 100 * place, label.name, label.text or label.name
            )
        )
    width = min(18, max((len(label.text or label.name) for label in labels), default=0) + 1)
    return Markup(
        '<svg class="leaders" viewBox="0 0 {0} {0}" preserveAspectRatio="none" aria-hidden="true">{1}</svg>'
        '<div class="labels" style="--chars:{2}">{3}</div>'
    ).format(UNITS, Markup("").join(leaders), width, Markup("").join(names))


def spread(places: Sequence[float], gap: float, high: float) -> list[float]:
    """Move places within [0, high] as little as possible until they are ``gap`` apart (or less, to fit in).

    Neighbours that collide become a group around the mean of the places they asked for (the
    pool-adjacent-violators algorithm), so the result is the least-squares one.
    """
    count = len(places)
    if count == 0:
        return []
    gap = min(gap, high / max(1, count - 1)) if count > 1 else gap
    order = sorted(range(count), key=lambda i: places[i])
    groups: list[list[float]] = []  # [sum of wishes, size]; a wish is the place less the room of those before
    for rank, index in enumerate(order):
        groups.append([places[index] - rank * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] > groups[-1][0] / groups[-1][1]:
            total, size = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += size
    wishes = [total / size for total, size in groups for _ in range(int(size))]
    room = high - (count - 1) * gap
    result = [0.0] * count
    for rank, index in enumerate(order):
        result[index] = min(max(wishes[rank], 0.0), room) + rank * gap
    return result
