"""Where the time of a step goes, speed, and the optimizer's own curves."""

from __future__ import annotations

import math

import numpy as np
from markupsafe import Markup

from megatron_moo.report import units
from megatron_moo.report.charts.bars import Bar, bar_chart
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.lines import Series, line_chart, stack_chart
from megatron_moo.report.records import StepRecord
from megatron_moo.report.sections.room import Room, Section
from megatron_moo.report.summary import mean, median

PHASES = ("compute", "exchange", "gramian", "solve", "combine", "optimizer")
OTHER = "other"
HIDDEN = "hidden"  # ran beside the backward pass: no part of the step's time
PHASE_COLOURS = {
    "compute": "c0",
    "exchange": "c1",
    "gramian": "c4",
    "solve": "c3",
    "combine": "c2",
    "optimizer": "c5",
    OTHER: "c7",
}


def time_section(room: Room) -> Section:
    """Split of the step time, tokens per second, gradient norm and learning rate."""
    lead = (
        "Seconds as the first rank measured them, validation and checkpoints left out. Exchange is the time "
        "that the rank waited for it: what hid behind the backward pass counts as compute"
    )
    hidden = mean(step.phase_s[HIDDEN] for step in room.steps if HIDDEN in step.phase_s)
    lead += f" ({units.seconds(hidden)} a step)." if math.isfinite(hidden) else "."
    figures = (_split(room), _over_time(room), _speed(room), _curve(room, "grad_norm"), _curve(room, "lr"))
    return Section("time", "Time and optimizer", lead, figures)


def _phase(step: StepRecord, phase: str) -> float:
    if phase != OTHER:
        return step.phase_s.get(phase, math.nan)
    known = (value for name, value in step.phase_s.items() if name != HIDDEN)
    rest = step.step_time_s - sum(value for value in known if math.isfinite(value))
    return max(0.0, rest) if step.phase_s else math.nan


def _names(room: Room) -> list[str]:
    """The known phases first, any others after them, and the rest of the step when it is worth a line."""
    found = dict.fromkeys(name for step in room.steps for name in step.phase_s if name != HIDDEN)
    names = [name for name in PHASES if name in found] + [name for name in found if name not in PHASES]
    rest = median(_phase(step, OTHER) for step in room.steps)
    return [*names, OTHER] if rest > 0.005 * median(step.step_time_s for step in room.steps) else names


def _split(room: Room) -> Markup:
    total = mean(step.step_time_s for step in room.steps)
    bars = []
    for name in _names(room):
        value = mean(_phase(step, name) for step in room.steps)
        share = f"  {units.percent(value / total, 1)}" if total > 0 else ""
        bars.append(Bar(name, value, f"{units.seconds(value)}{share}", PHASE_COLOURS.get(name, "c6")))
    spec = Figure("phases", "A step's time", f"mean {units.seconds(total)} a step")
    return bar_chart(spec, bars)


def _over_time(room: Room) -> Markup:
    x, grouped = room.line_bins(room.steps)
    series = [
        Series(
            name,
            grouped.mean(np.array([_phase(step, name) for step in room.steps])),
            PHASE_COLOURS.get(name, "c6"),
        )
        for name in _names(room)
    ]
    spec = Figure("phases-time", "Step time over time", "seconds", grouped.note(), height=240)
    return stack_chart(spec, x, series)


def _speed(room: Room) -> Markup:
    x, grouped = room.line_bins(room.steps)
    values = grouped.mean(room.per_step(lambda step: step.tokens_per_s))
    spec = Figure("tokens-per-second", "Speed", "tokens per second", grouped.note(), height=180, wide=True)
    return line_chart(spec, x, [Series("tokens/s", values, "c0 d0")], zero=True)


def _curve(room: Room, name: str) -> Markup:
    x, grouped = room.line_bins(room.steps)
    values = grouped.mean(room.per_step(lambda step: getattr(step, name)))
    title, label = {"grad_norm": ("Gradient norm, before clipping", "norm"), "lr": ("Learning rate", "rate")}[
        name
    ]
    spec = Figure(name.replace("_", "-"), title, "", grouped.note(), height=180)
    return line_chart(spec, x, [Series(label, values, "c0 d0")], zero=True)
