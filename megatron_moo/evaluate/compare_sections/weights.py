"""What the methods gave to each objective, as shares, so that methods of any scale compare."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, series
from megatron_moo.evaluate.compare_sections.blocks import nanmean
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.bars import panels
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Frame, heat_map, ordered_colours, signed_colours
from megatron_moo.report.charts.lines import Series
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.records import Array, MooRecord
from megatron_moo.report.sections.conflict import rows_height
from megatron_moo.report.sections.room import Section
from megatron_moo.report.sections.weights import MOST_PANELS
from megatron_moo.report.summary import end_window

LEGEND = "share of a block's weights"


def weights_section(both: Both) -> Section:
    """Shares per objective over time and, per block, at the end, for every recipe and against the reference."""
    lead = (
        "A block's update is the weighted sum of the objectives' gradients. Some methods' weights sum to one, others' "
        "to the number of objectives: here each weight is a share of its block's sum, mean over the runs of a recipe. "
        "Blocks whose weights sum to nothing positive are left out."
    )
    objectives = tuple(
        dict.fromkeys(name for arm in both.arms for one in arm.metrics for name in one.objectives)
    )
    ends = [_at_end(arm) for arm in both.arms]
    known = [values.ravel() for _, values in ends]
    colours = ordered_colours("b", np.concatenate(known))
    maps = [
        heat_map(
            Figure(
                f"weights-blocks-{i}", f"{arm.short}: weight per block and objective", "share at the end",
                height=rows_height(len(blocks)),
            ),
            [Frame("", values)] if values.size else [], blocks, Axis(names=_objectives(arm)), colours, legend=LEGEND,
        )
        for i, (arm, (blocks, values)) in enumerate(zip(both.arms, ends, strict=True))
    ]  # fmt: skip
    figures = (_over_time(both, objectives), *maps, _difference(both, ends))
    return Section("weights", "Weights", lead, figures)


def shares(moo: MooRecord) -> Array:
    """``[blocks, objectives]``: weights over their block's sum; NaN where that is not positive."""
    total = np.nansum(moo.weights, axis=1, keepdims=True)
    return moo.weights / np.where(total > 0, total, np.nan)


def _objectives(arm: Arm) -> tuple[str, ...]:
    return arm.metrics[0].objectives


def _over_time(both: Both, objectives: tuple[str, ...]) -> Markup:
    spec = Figure(
        "weights-time",
        "Weight per objective over time",
        "share, mean over blocks",
        f"Equal weights would be {1 / max(1, len(objectives)):.3f} each.",
        wide=True,
    )
    told = {id(one): _by_step(one) for arm in both.arms for one in arm.metrics}
    if len(objectives) > MOST_PANELS:
        return _many(spec, both, objectives, told)
    named: list[tuple[str, list[Series]]] = []
    x: Array = np.zeros(0)
    for name in objectives:

        def pick(metrics: RunMetrics, name: str = name) -> Mapping[int, float]:
            return {step: of.get(name, np.nan) for step, of in told[id(metrics)].items()}

        x, lines, _ = series(both.arms, pick)  # the same steps for every objective
        named.append((name, lines))
    return panels(spec, x, named)


def _by_step(metrics: RunMetrics) -> dict[int, dict[str, float]]:
    """Mean over blocks per step and objective."""
    return {
        step.step: dict(zip(step.objectives, map(float, nanmean(shares(step.moo))), strict=True))
        for step in metrics.steps
        if step.moo and step.moo.weights.size
    }


def _many(
    spec: Figure,
    both: Both,
    objectives: tuple[str, ...],
    told: Mapping[int, Mapping[int, Mapping[str, float]]],
) -> Markup:
    """Too many objectives for a panel each: the last steps, recipes beside each other."""
    columns = []
    for arm in both.arms:
        last = [
            of for one in arm.metrics for of in list(told[id(one)].values())[-end_window(len(one.steps)) :]
        ]
        rows = np.array([[of.get(name, np.nan) for name in objectives] for of in last], dtype=np.float64)
        columns.append(nanmean(rows) if len(last) else np.full(len(objectives), np.nan))
    values = np.array(columns).T
    spec = Figure(
        spec.plot, "Weight per objective at the end", spec.unit, spec.note, height=rows_height(len(objectives)),
        wide=True,
    )  # fmt: skip
    names = Axis(names=tuple(arm.short for arm in both.arms))
    return heat_map(spec, [Frame("", values)], objectives, names, ordered_colours("b", values), legend=LEGEND)


def _at_end(arm: Arm) -> tuple[tuple[str, ...], Array]:
    """Blocks, and ``[blocks, objectives]`` over each run's last steps."""
    blocks = tuple(dict.fromkeys(block for one in arm.metrics for block in one.blocks))
    objectives = _objectives(arm)
    runs = []
    for metrics in arm.metrics:
        last = [step for step in metrics.steps[-end_window(len(metrics.steps)) :] if step.moo]
        table = np.full((len(last), len(blocks), len(objectives)), np.nan)
        for i, step in enumerate(last):
            assert step.moo is not None
            rows = [blocks.index(block) for block in step.moo.blocks]
            columns = [
                (j, objectives.index(name)) for j, name in enumerate(step.objectives) if name in objectives
            ]
            part = shares(step.moo)
            for source, target in columns:
                table[i, rows, target] = part[:, source]
        if last:
            runs.append(nanmean(table))
    return blocks, nanmean(np.array(runs)) if runs else np.zeros((0, 0))


def _difference(both: Both, ends: list[tuple[tuple[str, ...], Array]]) -> Markup:
    reference, (blocks, base) = both.arms[0], ends[0]
    names = _objectives(reference)
    spec = Figure(
        "weights-difference",
        f"Weight per block and objective, minus {reference.short}",
        "share at the end",
        "Blue: more than in the reference, orange: less.",
        height=rows_height(len(blocks)),
        wide=len(both.arms) % 2 == 0,
    )
    alike = [
        (arm, values)
        for arm, (own, values) in zip(both.arms[1:], ends[1:], strict=True)
        if own == blocks and values.size and base.size and _objectives(arm) == names
    ]
    if not alike:
        return frame.missing(spec, f"No recipe has the blocks and objectives of {reference.short}.")
    one = len(alike) == 1
    frames = [
        Frame("" if one else f"{arm.short} minus {reference.short}", values - base) for arm, values in alike
    ]
    colours = signed_colours(np.concatenate([each.values.ravel() for each in frames]), least=0.01)
    return heat_map(spec, frames, blocks, Axis(names=names), colours, legend=f"{LEGEND}, difference")
