"""Cosines between the objectives' gradients, with the noise floor beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from megatron_moo.report.charts.binning import bins
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Frame, heat_map, signed_colours
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.records import Array, MooRecord, StepRecord
from megatron_moo.report.sections.room import LINE_POINTS, Room, Section
from megatron_moo.report.summary import end_window, mean

CHOSEN = 7  # steps shown one by one, beside the average
CHOSEN_IF_LARGE = 3
LARGE = 40  # objectives
NARROW = 24  # up to so many objectives the matrix stands beside the curve


def cosine_section(room: Room) -> Section:
    """The matrix (average and chosen steps) and its mean over time."""
    lead = (
        "Cosine between the gradients of two objectives, over the whole model. Below zero, a step that helps "
        "one of them hurts the other to first order. Gradients of small batches are noisy: the cosine "
        "between two batches of the same language shows how much of the distance from 1 is noise alone."
    )
    measured = measured_cosines(room)
    return Section(
        "cosine", "Agreement between languages", lead, (_matrix(room, measured), _over_time(room, measured))
    )


def measured_cosines(room: Room) -> list[tuple[StepRecord, MooRecord]]:
    """Steps whose cosine matrix belongs to the run's objectives."""
    objectives = room.metrics.objectives
    return [
        (step, step.moo)
        for step in room.steps
        if step.moo and step.moo.cosine.size and step.objectives == objectives
    ]


def off_diagonal(cosine: Array) -> Array:
    """The finite cosines of all pairs."""
    pairs = cosine[np.triu_indices(len(cosine), 1)]
    return pairs[np.isfinite(pairs)]


def mean_cosine(moos: Sequence[MooRecord]) -> float:
    """Mean over pairs, then over steps."""
    return mean(float(pairs.mean()) for moo in moos if (pairs := off_diagonal(moo.cosine)).size)


def _matrix(room: Room, measured: list[tuple[StepRecord, MooRecord]]) -> Markup:
    objectives = room.metrics.objectives
    window = end_window(len(room.steps))
    frames = matrix_frames(measured, window)
    average = off_diagonal(frames[0].values) if frames else np.zeros(0)
    floor = room.summary.cosine_same
    narrow = len(objectives) <= NARROW
    spec = Figure(
        "cosine-matrix",
        "Cosine matrix",
        note="The diagonal is 1 by definition and left empty. "
        + (
            "Move the slider for single steps; what is beyond the scale has the end colours. "
            if len(frames) > 1
            else ""
        )
        + ("" if math.isfinite(floor) else "This run did not measure the same-language cosine."),
        height=440 if narrow else min(1200, max(560, 12 * len(objectives))),
        wide=not narrow,
    )
    marks = [
        (mean(average), "mean of pairs"),
        (floor, "same language"),
    ]
    return heat_map(
        spec,
        frames,
        objectives,
        Axis(names=objectives),
        signed_colours(average),
        marks=marks,
        blank_diagonal=True,
        legend="cosine between two objectives",
    )


def matrix_frames(measured: list[tuple[StepRecord, MooRecord]], window: int) -> list[Frame]:
    """The mean of the last ``window`` of ``measured``, chosen steps one by one, and the mean of all."""
    if not measured:
        return []
    last = measured[-window:]
    average = bins(len(last), 1).mean(np.array([moo.cosine for _, moo in last]))[0]
    title = f"mean of the last {len(last)} steps" if len(last) > 1 else f"step {last[0][0].step}"
    wanted = CHOSEN if len(measured[0][1].cosine) <= LARGE else CHOSEN_IF_LARGE
    indices = sorted({round(i) for i in np.linspace(0, len(measured) - 1, wanted)})
    single = [Frame(f"step {measured[i][0].step}", measured[i][1].cosine) for i in indices]
    if len(measured) < 2:
        return [Frame(title, average)]
    whole = bins(len(measured), 1).mean(np.array([moo.cosine for _, moo in measured]))[0]
    return [Frame(title, average), *single, Frame(f"mean of all {len(measured)} steps", whole)]


def _over_time(room: Room, measured: list[tuple[StepRecord, MooRecord]]) -> Markup:
    grouped = bins(len(measured), LINE_POINTS)
    pairs = [off_diagonal(moo.cosine) for _, moo in measured]
    low, middle, high = (
        grouped.mean(np.array([np.quantile(p, q) if p.size else math.nan for p in pairs]))
        for q in (0.1, 0.5, 0.9)
    )
    same = grouped.mean(np.array([moo.cosine_same for _, moo in measured]))
    series = [Series("pairs, median", middle, "c0 d0", low=low, high=high)]
    if np.isfinite(same).any():
        series.append(Series("same language", same, "c1 d0"))
    spec = Figure(
        "cosine-time",
        "Cosine over time",
        note=f"Median over pairs of objectives; the band holds 80 % of the pairs. {grouped.note()}",
        height=320,
        wide=len(room.metrics.objectives) > NARROW,
    )
    x = grouped.mean(np.array([step.step for step, _ in measured], dtype=np.float64))
    return line_chart(spec, x, series, digits=3)
