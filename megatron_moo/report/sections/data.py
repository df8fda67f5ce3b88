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
    """Token shares per language."""
    lead = "Tokens that entered the training loss, counted step by step: not the shares that were asked for."
    return Section("data", "Data drawn", lead, (_shares(room),))


def asked_shares(room: Room) -> Mapping[str, float]:
    """Shares that the ``start`` event names under ``shares`` (language to share), empty when it does not."""
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
