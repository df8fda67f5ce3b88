"""What ``--moo-block auto`` split and merged, and when."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from markupsafe import Markup

from megatron_moo.report.beside import sequence
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.records import EventRecord
from megatron_moo.report.sections.room import Room

Groups = Sequence[tuple[str, tuple[str, ...]]]  # name and modules, in the model's order
_LAYER = re.compile(r"^(.*?\blayers\.\d+)\.")


def layer_of(module: str) -> str:
    """The layer that a module's weights start in; as ``buckets/adaptive.py``, which needs torch."""
    if match := _LAYER.match(module):
        return match[1]
    return "head" if module == "final_norm" else module


def changes_figure(room: Room) -> Markup | None:
    """A table of splits and merges; None for runs whose blocks are fixed."""
    events = [event for event in room.metrics.events if event.event == "blocks"]
    if not events and room.summary.block != "auto":
        return None
    spec = Figure(
        "blocks-changed",
        "Blocks split and merged",
        "--moo-block auto",
        "Blocks start as layers. One is split where a pair of languages is in conflict in a part, and more so than in "
        "the whole; neighbours are merged where every pair agrees.",
        wide=True,
    )
    rows = list(_rows(events))
    if not rows:
        return frame.missing(spec, f"No block was split or merged up to step {room.steps[-1].step:,}.")
    headings = ("step", "what", "before", "after", "sets of weights after")
    return table(spec, headings, rows)


def _rows(events: Sequence[EventRecord]) -> Iterator[TableRow]:
    before: Groups = ()
    for event in events:
        groups = event.fields.get("groups")
        after = [
            (str(name), tuple(map(str, sequence(modules))))
            for name, modules in (groups.items() if isinstance(groups, Mapping) else ())
        ]
        before = before or _layers([module for _, modules in after for module in modules])
        for old, new in changes(before, after):
            what = "split" if len(old) < len(new) else "merged" if len(new) < len(old) else "changed"
            cells = (
                Cell(what), Cell(", ".join(old), words=True), Cell(", ".join(new), words=True),
                Cell(str(len(after)), len(after)),
            )  # fmt: skip
            yield TableRow(f"{event.step:,}", cells)
        before = after


def _layers(modules: Sequence[str]) -> Groups:
    """What a run starts from."""
    found: dict[str, list[str]] = {}
    for module in modules:
        found.setdefault(layer_of(module), []).append(module)
    return [(name, tuple(own)) for name, own in found.items()]


def changes(before: Groups, after: Groups) -> Iterator[tuple[list[str], list[str]]]:
    """Names before and after, of every stretch of modules whose grouping changed.

    Args:
        before: groups of neighbours.
        after: groups of the same modules in the same order.
    """
    ends = [_ends(groups) for groups in (before, after)]
    start = 0
    for end in sorted({*ends[0]} & {*ends[1]}):  # where both have a border
        old, new = (
            [groups[i] for i, at in enumerate(own) if start < at <= end]
            for groups, own in zip((before, after), ends, strict=True)
        )
        if [modules for _, modules in old] != [modules for _, modules in new]:
            yield [name for name, _ in old], [name for name, _ in new]
        start = end


def _ends(groups: Groups) -> list[int]:
    """How many modules there are up to the end of each group."""
    total, ends = 0, []
    for _, modules in groups:
        total += len(modules)
        ends.append(total)
    return ends
