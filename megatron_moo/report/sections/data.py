"""What was drawn: tokens per language, against what was asked for where the run says so."""

from __future__ import annotations

import math
from collections.abc import Mapping

from markupsafe import Markup

from megatron_moo.report import units
from megatron_moo.report.charts.bars import Bar, bar_chart
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.sections.room import Room, Section


def data_section(room: Room) -> Section:
    """Token shares per language, asked and drawn, and what repeats how often."""
    lead = "Tokens that entered the training loss, counted step by step: not the shares that were asked for."
    notes = "; ".join(_notes(room))
    table = (_drawn_table(room),) if room.summary.drawn else ()
    return Section("data", "Data drawn", f"{lead} {notes}.".replace(" .", ""), (_shares(room), *table))


def _notes(room: Room) -> list[str]:
    """What the run's start said of small languages and repeated text."""
    for event in reversed(room.metrics.events):
        notes = event.fields.get("notes")
        if event.event == "start" and isinstance(notes, list):
            return [str(note) for note in notes]
    return []


def asked_shares(room: Room) -> Mapping[str, float]:
    """Shares of the tokens that the law asks for, as the last ``drawn`` event or the ``start`` event says."""
    if room.summary.drawn:
        return {tag: told.get("asked", math.nan) for tag, told in room.summary.drawn.items()}
    for event in reversed(room.metrics.events):
        shares = event.fields.get("shares")
        if event.event == "start" and isinstance(shares, Mapping):
            return {str(tag): float(share) for tag, share in shares.items() if isinstance(share, int | float)}
    return {}


def _shares(room: Room) -> Markup:
    tokens = room.summary.tokens
    total = sum(tokens.values())
    asked = asked_shares(room)
    bars = [
        Bar(
            tag,
            count / total if total else math.nan,
            f"{units.percent(count / total if total else math.nan, 1)}  {units.count(count)}",
            asked=asked.get(tag, math.nan),
        )
        for tag, count in tokens.items()
    ]
    note = "The upright mark is the share asked for." if asked else ""
    spec = Figure(
        "token-shares", "Token share per language", f"of {units.count(total)} tokens", note, wide=True
    )
    return bar_chart(spec, bars if total else [])


COLUMNS = ("language", "asked", "expected", "drawn", "tokens", "samples", "epochs")


def _drawn_table(room: Room) -> Markup:
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in COLUMNS)
    rows = Markup("").join(_drawn_row(room, tag, told) for tag, told in room.summary.drawn.items())
    how = {
        "present": "every objective in every step, so a rare language is lifted",
        "law": "drawn by the law",
        "mixed": "drawn by the law, mixed inside micro-batches",
    }.get(room.summary.presence, room.summary.presence)
    return Markup(
        '<figure class="fig wide" data-plot="drawn-table"><figcaption><b>Asked and drawn</b> '
        '<span class="unit">share of the tokens since the law began</span></figcaption><div class="scroll">'
        '<table class="sortable plain"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
        '<p class="note">Asked: the sampling law\'s share. Expected: what presence makes of it in the long run ({}). '
        "Samples and epochs count from the start of training. Tap a heading to sort.</p></figure>"
    ).format(head, rows, how)


def _drawn_row(room: Room, tag: str, told: Mapping[str, float]) -> Markup:
    values = {key: told.get(key, math.nan) for key in COLUMNS[1:]}
    texts = {key: units.percent(values[key], 1) for key in ("asked", "expected", "drawn")}
    texts |= {key: units.count(values[key]) for key in ("tokens", "samples")}
    texts["epochs"] = f"{values['epochs']:.2f}"
    cells = Markup("").join(
        Markup('<td data-v="{}">{}</td>').format(value if math.isfinite(value) else "", texts[key])
        for key, value in values.items()
    )
    name = Markup('<i class="dot {}"></i>{}').format(room.colours.get(tag, "c0 d0"), tag)
    return Markup('<tr data-n="{}"><th scope="row">{}</th>{}</tr>').format(tag, name, cells)
