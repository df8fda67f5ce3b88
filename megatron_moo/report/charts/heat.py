"""Heat maps: a matrix as one SVG path per colour, so that 100 languages still make a small page."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.palette import DIVERGING, SEQUENTIAL
from megatron_moo.report.charts.scale import Scale, tick_text
from megatron_moo.report.records import Array

ROW_NAME = 12  # pixels that a row's name needs
COLUMN_NAMES = 40  # more columns than this go without names; tooltips name them


@dataclass(frozen=True)
class Colours:
    """From values to levels: ``ramp`` is ``v`` (signed), ``o`` or ``b`` (ordered)."""

    ramp: str
    low: float
    high: float
    log: bool = False

    @property
    def levels(self) -> int:
        """Number of colours."""
        return DIVERGING if self.ramp == "v" else SEQUENTIAL

    def share(self, value: float) -> float:
        """Place between the lowest and the highest colour, clipped."""
        if self.log:
            value, low, high = math.log(max(value, self.low)), math.log(self.low), math.log(self.high)
        else:
            low, high = self.low, self.high
        return min(1.0, max(0.0, (value - low) / (high - low)))

    def level(self, value: float) -> int:
        """Index of the colour of a finite value."""
        return min(self.levels - 1, int(self.share(value) * self.levels))


@dataclass(frozen=True)
class Frame:
    """One matrix of a heat map that can show several."""

    name: str
    values: Array  # [rows, columns]


@dataclass(frozen=True)
class Axis:
    """Rows or columns: a name each, or a scale of steps."""

    names: tuple[str, ...] = ()
    scale: Scale | None = None


def signed_colours(values: Array, least: float = 0.1) -> Colours:
    """Colours symmetric about zero that reach the largest value, rounded up to a friendly number."""
    finite = np.abs(values[np.isfinite(values)])
    largest = float(finite.max()) if finite.size else least
    friendly = next((top for top in (0.1, 0.2, 0.3, 0.5, 0.75, 1.0) if top >= max(largest, least)), largest)
    return Colours("v", -friendly, friendly)


def ordered_colours(ramp: str, values: Array, *, least: float = 0.0) -> Colours:
    """Colours from zero to the largest value, rounded up to a friendly number, and to ``least`` at least."""
    finite = values[np.isfinite(values)]
    largest = float(finite.max()) if finite.size else 1.0
    return Colours(ramp, 0.0, _friendly(max(largest, least)))


def _friendly(value: float) -> float:
    """The next round number."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        (round(m * power, 12) for m in (1, 1.2, 1.6, 2, 3, 4, 5, 6, 8) if m * power >= value), 10 * power
    )


def heat_map(
    spec: Figure,
    frames: Sequence[Frame],
    rows: tuple[str, ...],
    columns: Axis,
    colours: Colours,
    *,
    marks: Sequence[tuple[float, str]] = (),
    blank_diagonal: bool = False,
    legend: str = "",
) -> Markup:
    """A heat map with a legend; several ``frames`` get a slider.

    Args:
        spec: name, words and size.
        frames: matrices [rows, columns]; NaN cells are hatched out.
        rows: names of the rows.
        columns: names or steps of the columns.
        colours: from values to colours.
        marks: (value, text) shown with their colours under the legend.
        blank_diagonal: leave the diagonal empty (it is one by definition).
        legend: what a value is, in words.
    """
    if not frames or not rows or not any(np.isfinite(one.values).any() for one in frames):
        return frame.missing(spec, "Not measured in this run.")
    count = frames[0].values.shape[1]
    layers = Markup("").join(
        Markup('<g class="fr{}">{}</g>').format(
            " on" if i == 0 else "", _cells(one.values, colours, blank_diagonal)
        )
        for i, one in enumerate(frames)
    )
    svg = Markup(
        '<svg viewBox="0 0 {} {}" preserveAspectRatio="none" shape-rendering="crispEdges" aria-hidden="true">'
        "{}</svg>"
    ).format(count, len(rows), layers)
    body = Markup(
        '<div class="heat" style="--h:{}px;--chars:{}">{}<div class="rows">{}</div>{}</div>'
    ).format(
        spec.height,
        min(24, max(map(len, rows)) + 1),
        _head(columns),
        _row_names(rows, spec.height),
        _area(svg, columns, spec.axis),
    )
    data = {
        "rows": list(rows),
        "cols": list(columns.names),
        "x": _steps(columns, count),
        "frames": [{"n": one.name, "v": [frame.numbers(row, 3) for row in one.values]} for one in frames],
        "unit": legend,
    }
    return frame.figure(spec, _slider(frames) + body, data, _legend(colours, marks, legend))


def _cells(values: Array, colours: Colours, blank_diagonal: bool) -> Markup:
    """One path per colour; neighbours of one colour in a row are one rectangle."""
    paths: dict[str, list[str]] = defaultdict(list)
    for row, cells in enumerate(values):
        start, previous = 0, ""
        for column in range(len(cells) + 1):
            name = _class(cells, row, column, colours, blank_diagonal) if column < len(cells) else ""
            if name == previous:
                continue
            if previous:
                paths[previous].append(f"M{start} {row}h{column - start}v1h{start - column}z")
            start, previous = column, name
    return Markup("").join(
        Markup('<path class="hc {}" d="{}"/>').format(name, "".join(parts)) for name, parts in paths.items()
    )


def _class(cells: Array, row: int, column: int, colours: Colours, blank_diagonal: bool) -> str:
    if blank_diagonal and row == column:
        return "dg"
    value = float(cells[column])
    return f"{colours.ramp}{colours.level(value)}" if math.isfinite(value) else "na"


def _head(columns: Axis) -> Markup:
    if not columns.names or len(columns.names) > COLUMN_NAMES:
        return Markup("")
    size = 100 / len(columns.names)
    names = Markup("").join(
        Markup('<span data-n="{0}" style="left:{1:.2f}%" title="{0}">{0}</span>').format(
            name, (i + 0.5) * size
        )
        for i, name in enumerate(columns.names)
    )
    chars = min(14, max(map(len, columns.names)) + 1)
    return Markup('<div class="cols" style="--chars:{}">{}</div>').format(chars, names)


def _row_names(rows: tuple[str, ...], height: int) -> Markup:
    every = max(1, math.ceil(ROW_NAME * len(rows) / height))
    return Markup("").join(
        Markup('<span data-n="{0}" style="top:{1:.2f}%" title="{0}">{0}</span>').format(
            name, 100 * (i + 0.5) / len(rows)
        )
        for i, name in enumerate(rows)
        if i % every == 0
    )


def _area(svg: Markup, columns: Axis, axis: str) -> Markup:
    ticks = frame.x_axis(columns.scale, axis) if columns.scale else Markup("")
    return Markup('<div class="area">{}</div>{}').format(svg, ticks)


def _steps(columns: Axis, count: int) -> list[float | None]:
    if columns.scale is None:
        return []
    width = (columns.scale.high - columns.scale.low) / count
    return frame.numbers((columns.scale.low + (i + 0.5) * width for i in range(count)), 8)


def _slider(frames: Sequence[Frame]) -> Markup:
    if len(frames) < 2:
        return Markup("")
    return Markup(
        '<label class="slider"><input type="range" min="0" max="{}" value="0" step="1" aria-label="which matrix">'
        "<output>{}</output></label>"
    ).format(len(frames) - 1, frames[0].name)


def _legend(colours: Colours, marks: Sequence[tuple[float, str]], text: str) -> Markup:
    swatches = Markup("").join(
        Markup('<i class="{}{}"></i>').format(colours.ramp, i) for i in range(colours.levels)
    )
    middle = (colours.low + colours.high) / 2
    ends = Markup("").join(
        Markup('<span style="left:{:.0f}%">{}</span>').format(
            100 * colours.share(value), tick_text(round(value, 4))
        )
        for value in (colours.low, middle, colours.high)
    )
    pointers = Markup("").join(
        Markup('<em><i class="{}{}"></i>{} {}</em>').format(
            colours.ramp, colours.level(value), name, f"{value:.2f}".replace("-", "−")
        )
        for value, name in marks
        if math.isfinite(value)
    )
    return Markup(
        '<div class="legend"><div class="swatches">{}</div><div class="ends">{}</div>{}<p>{}</p></div>'
    ).format(swatches, ends, Markup('<div class="marks">{}</div>').format(pointers) if pointers else "", text)
