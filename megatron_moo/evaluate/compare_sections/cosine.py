"""Cosines between the objectives' gradients, a matrix per recipe and their difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, series
from megatron_moo.evaluate.compare_sections.blocks import common, nanmean
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Colours, Frame, heat_map, signed_colours
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import Array
from megatron_moo.report.sections.cosine import (
    NARROW,
    matrix_frames,
    mean_cosine,
    measured_cosines,
    off_diagonal,
)
from megatron_moo.report.sections.room import Section
from megatron_moo.report.summary import end_window, mean

LEGEND = "cosine between two objectives"


def cosine_section(both: Both) -> Section:
    """A matrix per recipe (averages and single steps), recipes minus the reference, and the mean over time."""
    lead = (
        "Cosine between the gradients of two objectives, over the whole model, mean over the runs of a recipe. The "
        "cosine between two batches of one language, beside it, is what noise leaves of 1. All matrices share one "
        "scale; sliders show single steps."
    )
    steps = [_steps(arm) for arm in both.arms]
    frames = [_frames(arm, own) for arm, own in zip(both.arms, steps, strict=True)]
    averages = [off_diagonal(one[0].values) for one in frames if one]
    colours = signed_colours(np.concatenate(averages) if averages else np.zeros(0))
    matrices = [
        _matrix(arm, own, colours, i) for i, (arm, own) in enumerate(zip(both.arms, frames, strict=True))
    ]
    figures = (*matrices, _difference(both, steps), _over_time(both))
    return Section("cosine", "Agreement between languages", lead, figures)


def _names(arm: Arm) -> tuple[str, ...]:
    return arm.metrics[0].objectives


def _steps(arm: Arm) -> tuple[int, ...]:
    """Steps at which all runs of a recipe measured a matrix of its objectives."""
    if any(one.objectives != _names(arm) for one in arm.metrics):
        return ()
    return common([[step.step for step, _ in measured_cosines(room)] for room in arm.rooms])


def _frames(arm: Arm, steps: Sequence[int]) -> list[Frame]:
    """The frames of a run's own page at ``steps``, each the mean over runs."""
    wanted, window = set(steps), end_window(len(arm.metrics[0].steps))
    runs = [
        matrix_frames([one for one in measured_cosines(room) if one[0].step in wanted], window)
        for room in arm.rooms
    ]
    return [
        Frame(same[0].name, nanmean(np.array([one.values for one in same])))
        for same in zip(*runs, strict=True)
    ]


def _size(objectives: int) -> int:
    return 440 if objectives <= NARROW else min(1200, max(560, 12 * objectives))


def _matrix(arm: Arm, frames: Sequence[Frame], colours: Colours, index: int) -> Markup:
    names = _names(arm)
    spec = Figure(
        f"cosine-matrix-{index}", f"{arm.short}: cosine matrix", height=_size(len(names)),
        wide=len(names) > NARROW,
    )  # fmt: skip
    floor = mean(one.cosine_same for one in arm.summaries)
    marks = (
        [(mean(off_diagonal(frames[0].values)), "mean of pairs"), (floor, "same language")] if frames else []
    )
    return heat_map(
        spec, frames, names, Axis(names=names), colours, marks=marks, blank_diagonal=True, legend=LEGEND
    )


def _difference(both: Both, steps: Sequence[tuple[int, ...]]) -> Markup:
    """Each recipe minus the reference; of one recipe the single steps too."""
    reference, names = both.arms[0], _names(both.arms[0])
    spec = Figure(
        "cosine-difference",
        f"Cosine matrix, minus {reference.short}",
        "",
        "Blue: two languages agree more than in the reference, orange: less.",
        height=_size(len(names)),
        wide=len(names) > NARROW,
    )
    frames = []
    for arm, own in zip(both.arms[1:], steps[1:], strict=True):
        shared = common([steps[0], own])
        if not shared or set(_names(arm)) != set(names):
            continue
        order = [_names(arm).index(name) for name in names]
        pairs = list(zip(_frames(arm, shared), _frames(reference, shared), strict=True))
        if len(both.arms) > 2:  # the averages only
            pairs = pairs[:1] + pairs[-1:] if len(pairs) > 1 else pairs
        prefix = f"{arm.short}, " if len(both.arms) > 2 else ""
        frames += [Frame(f"{prefix}{a.name}", a.values[np.ix_(order, order)] - b.values) for a, b in pairs]
    if not frames:
        return frame.missing(
            spec, f"No recipe has measured cosines of the objectives of {reference.short} at its steps."
        )
    colours = signed_colours(off_diagonal(frames[0].values))
    return heat_map(
        spec, frames, names, Axis(names=names), colours, blank_diagonal=True, legend=f"{LEGEND}, difference"
    )


def _over_time(both: Both) -> Markup:
    def between(metrics: RunMetrics) -> Mapping[int, float]:
        return {
            step.step: mean_cosine([step.moo]) for step in metrics.steps if step.moo and step.moo.cosine.size
        }

    def same(metrics: RunMetrics) -> Mapping[int, float]:
        return {
            step.step: step.moo.cosine_same
            for step in metrics.steps
            if step.moo and math.isfinite(step.moo.cosine_same)
        }

    x, lines, note = series(both.arms, between)
    floor_x, floors, _ = series(both.arms, same, "d1")
    lines += [_beside(line, floor_x, x) for line in floors if len(x)]
    spec = Figure(
        "cosine-time", "Cosine between objectives", "mean of pairs", f"Dashed: same language. {note}",
        height=280, wide=len(both.arms) % 2 == 1,  # so that figures fill the rows of two
    )  # fmt: skip
    return line_chart(spec, x, lines, digits=3)


def _beside(line: Series, own: Array, x: Array) -> Series:
    """The same-language cosine, which is measured at fewer steps."""
    values = np.interp(x, own, line.values, left=math.nan, right=math.nan)
    return Series(f"{line.name}, same language", values, line.classes, text=f"same: {line.name}")
