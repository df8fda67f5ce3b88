"""What ``eval`` and ``analyze`` left beside the compared runs, as sections of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from megatron_moo.analyze.curves import CURVES
from megatron_moo.evaluate.arms import MOST_BANDS, Arm, Both, Spread, point, spread
from megatron_moo.evaluate.compare import Run
from megatron_moo.report import units
from megatron_moo.report.beside import Beside, mapping, number, read_beside
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.forest import ForestRow, forest, written
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.records import Array
from megatron_moo.report.sections.room import Section

Told = Mapping[str, Any]
ACCURACY = ("cloze", "acc_norm")
LOSSES = {"loss": "nats per token", "bits_per_byte": "bits per byte"}


def evaluation_section(both: Both) -> Section:
    """Losses and cloze of every run's ``eval.json``: means over the runs of a recipe that have one."""
    arms = both.arms
    found = [[_of(run).evaluation for run in arm.runs] for arm in arms]
    lead = (
        "What megatron-moo eval measured of the runs: losses over windows of held-out text and the aligned cloze (the "
        "true continuation among four, the same items in every language). " + _steps(arms, found)
    ).strip()
    if not any(told for runs in found for told in runs):
        spec = Figure("eval-table", "Evaluation table", wide=True)
        command = f"“megatron-moo eval runs/{arms[0].runs[0].name}”"
        why = f"None of the runs was evaluated: {command} and so on, then compare."
        return Section("evaluation", "Evaluation", lead, (frame.missing(spec, why),))
    return Section("evaluation", "Evaluation", lead, (_table(arms, found), _cloze(arms, found)))


def _of(run: Run) -> Beside:
    return read_beside(run.folder)


def _steps(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> str:
    """Which checkpoints were looked at, and which runs were not."""
    looked = {
        (number(told.get("step")), number(told.get("seq_length"))) for runs in found for told in runs if told
    }
    without = [
        run.name
        for arm, runs in zip(arms, found, strict=True)
        for run, told in zip(arm.runs, runs, strict=True)
        if not told
    ]
    words = []
    if len(looked) == 1:
        ((step, length),) = looked
        words.append(f"All of step {step:,.0f}, windows of {length:.0f} tokens.")
    elif looked:
        words.append(
            "The runs were evaluated at different steps or window lengths: these numbers do not compare."
        )
    if looked and without:
        words.append(f"Not evaluated: {', '.join(without)}.")
    return " ".join(words)


def _tags(found: Sequence[Sequence[Told]]) -> list[str]:
    return list(
        dict.fromkeys(tag for runs in found for told in runs for tag in mapping(told.get("languages")))
    )


def _over(runs: Sequence[Told], tag: str, *keys: str) -> Spread:
    """A number of a language, over the runs that were evaluated."""
    values = []
    for told in runs:
        if told:
            at: object = told["languages"].get(tag)
            for key in keys:
                at = mapping(at).get(key)
            values.append(number(at))
    return spread(values)


def _table(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> Markup:
    rows = []
    for tag in _tags(found):
        cells: list[Cell] = []
        for runs in found:
            losses = [_over(runs, tag, name).mean for name in LOSSES]
            cells += [Cell(written(value, 4, False), value) for value in losses]
            accuracy = _over(runs, tag, *ACCURACY).mean
            cells.append(Cell(f"{accuracy:.3f}" if math.isfinite(accuracy) else units.ABSENT, accuracy))
        rows.append(TableRow(tag, tuple(cells)))
    headings = ["language"]
    for arm in arms:
        headings += [f"{arm.short}: {unit}" for unit in LOSSES.values()] + [f"{arm.short}: cloze"]
    note = "Means over the runs of a recipe. Cloze: by log-probability per character. Tap a heading to sort."
    return table(Figure("eval-table", "Evaluation table", "", note, wide=True), headings, rows)


def _cloze(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> Markup:
    clozes = [mapping(told.get("cloze")) for runs in found for told in runs]
    items = {number(cloze.get("items")) for cloze in clozes if cloze}
    count = f"{items.pop():.0f} items" if len(items) == 1 else "unequal numbers of items"
    note = "Mean and spread over the runs of a recipe; the upright line is chance."
    spec = Figure("eval-cloze", "Aligned cloze", f"accuracy on {count}", note, wide=True)
    rows = []
    for tag in _tags(found):
        points = [point(arm, _over(runs, tag, *ACCURACY)) for arm, runs in zip(arms, found, strict=True)]
        if any(math.isfinite(one.value) for one in points):
            rows.append(ForestRow(tag, tuple(points)))
    if not rows:
        return frame.missing(
            spec, "Not measured: the cloze needs aligned text, “megatron-moo eval RUN --text FOLDER”."
        )
    chances = {number(cloze.get("chance")) for cloze in clozes if cloze}
    known = [chance for chance in chances if math.isfinite(chance)]
    return forest(spec, rows, reference=known[0] if len(known) == 1 else math.nan)


def representations_section(both: Both) -> Section:
    """Curves over the layers of every run's ``analysis.json``: means over the runs of a recipe that have one."""
    arms = both.arms
    found = [[_model(run) for run in arm.runs] for arm in arms]
    lead = (
        "Aligned sentences through every layer of the runs' models (0 is the embedding). Mean over the runs of a "
        f"recipe that were analysed, bands (of {MOST_BANDS} recipes at most) over all of them. "
        + _asked(found)
    ).strip()
    if not any(told for runs in found for told in runs):
        spec = Figure("layer-curves", "Representations", wide=True)
        command = f"“megatron-moo analyze runs/{arms[0].runs[0].name} --text FOLDER”"
        why = f"None of the runs was analysed: {command} and so on, then compare."
        return Section("representations", "Representations", lead, (frame.missing(spec, why),))
    figures = [_curve(arms, found, name, title) for name, title in CURVES.items()]
    return Section("representations", "Representations", lead, (*figures, _layers_table(arms, found)))


def _model(run: Run) -> Told:
    """The run's own part of its analysis; ``--against`` puts another model's beside it."""
    models = _of(run).models
    return next((model for model in models if model["model"] == run.name), models[0] if models else {})


def _asked(found: Sequence[Sequence[Told]]) -> str:
    asked = {
        (tuple(told["languages"]), number(told.get("sentences"))) for runs in found for told in runs if told
    }
    steps = {number(told.get("step")) for runs in found for told in runs if told}
    if len(asked) > 1 or len(steps) > 1:
        return "The runs were analysed at different steps or on different sentences: these curves do not compare."
    return "".join(f"{len(tags)} languages, {count:.0f} sentences." for tags, count in asked)


def _numbers(found: Sequence[Sequence[Told]]) -> list[int]:
    return sorted({layer["layer"] for runs in found for told in runs if told for layer in told["layers"]})


def _column(runs: Sequence[Told], numbers: Sequence[int], name: str) -> Array:
    """``[runs, layers]``; NaN where a run has no such number."""
    rows = []
    for told in runs:
        if told:
            values = {layer["layer"]: number(layer.get(name)) for layer in told["layers"]}
            rows.append([values.get(one, math.nan) for one in numbers])
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(numbers))


def _curve(arms: Sequence[Arm], found: Sequence[Sequence[Told]], name: str, title: str) -> Markup:
    numbers = _numbers(found)
    series = []
    for arm, runs in zip(arms, found, strict=True):
        values = _column(runs, numbers, name)
        if len(values):
            many = len(values) > 1 and len(arms) <= MOST_BANDS
            ends = (values.min(axis=0), values.max(axis=0)) if many else (None, None)
            series.append(Series(arm.short, values.mean(axis=0), arm.classes, *ends))
    spec = Figure(f"layer-{name}", title[0].upper() + title[1:], height=220, axis="layer")
    if not any(np.isfinite(line.values).any() for line in series):
        return frame.missing(spec, "Not measured: these models have no gated MLP that analyze knows.")
    return line_chart(spec, np.array(numbers, dtype=np.float64), series, points=len(numbers) <= 40, digits=3)


def _layers_table(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> Markup:
    numbers = _numbers(found)
    columns = [
        _column(runs, numbers, name).mean(axis=0) if any(runs) else np.full(len(numbers), math.nan)
        for name in CURVES
        for runs in found
    ]
    rows = [
        TableRow(
            str(layer),
            tuple(
                Cell(f"{column[i]:.3f}" if math.isfinite(column[i]) else units.ABSENT, float(column[i]))
                for column in columns
            ),
        )
        for i, layer in enumerate(numbers)
    ]
    headings = ["layer", *(f"{name.replace('_', ' ')}: {arm.short}" for name in CURVES for arm in arms)]
    return table(Figure("layers-table", "All layers", "means over runs", wide=True), headings, rows)
