"""Tables that can be sorted by tapping a heading."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure


@dataclass(frozen=True)
class Cell:
    """What is written, and the number that it is sorted by (none: by its words); ``words`` may take several lines."""

    text: str
    value: float | None = None
    words: bool = False


@dataclass(frozen=True)
class TableRow:
    """A row; ``classes`` give its name a coloured dot."""

    name: str
    cells: tuple[Cell, ...]
    classes: str = ""


def table(
    spec: Figure, headings: Sequence[str], rows: Sequence[TableRow], foot: Sequence[TableRow] = ()
) -> Markup:
    """A table in a figure; the first heading is that of the rows' names, ``foot`` rows stay at the bottom."""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in headings)
    body, end = (Markup("").join(map(_row, part)) for part in (rows, foot))
    return frame.figure(
        spec,
        Markup(
            '<div class="scroll"><table class="sortable plain"><thead><tr>{}</tr></thead>'
            "<tbody>{}</tbody>{}</table></div>"
        ).format(head, body, Markup("<tfoot>{}</tfoot>").format(end) if foot else ""),
    )


def _row(row: TableRow) -> Markup:
    dot = Markup('<i class="dot {}"></i>').format(row.classes) if row.classes else Markup("")
    cells = Markup("").join(map(_cell, row.cells))
    return Markup('<tr data-n="{0}"><th scope="row" title="{0}">{1}{0}</th>{2}</tr>').format(
        row.name, dot, cells
    )


def _cell(cell: Cell) -> Markup:
    if cell.words:
        return Markup('<td class="words">{}</td>').format(cell.text)
    if cell.value is None:
        return Markup("<td>{}</td>").format(cell.text)
    value = cell.value if math.isfinite(cell.value) else ""
    return Markup('<td data-v="{}">{}</td>').format(value, cell.text)
