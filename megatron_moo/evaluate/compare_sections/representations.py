"""What ``megatron-moo analyze`` left beside the compared runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from megatron_moo.analyze.curves import CURVES
from megatron_moo.evaluate.arms import MOST_BANDS, Arm, Both
from megatron_moo.evaluate.compare import Run
from megatron_moo.evaluate.compare_sections.beside import (
    Reader,
    Told,
    key,
    nothing_beside,
    of_run,
    verdict,
    without,
)
from megatron_moo.report import units
from megatron_moo.report.beside import mapping, number
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.records import Array
from megatron_moo.report.sections.room import Section

READERS: dict[str, Reader] = {
    "steps": key("step"),
    "languages": key("languages"),
    "numbers of sentences": key("sentences"),
    "texts": key("text"),
    "numbers of tokens a sentence": key("tokens"),
}


def representations_section(both: Both) -> Section:
    """Curves over the layers of every run's ``analysis.json``: means over the runs of a recipe that have one."""
    arms = both.arms
    found = [[_model(run) for run in arm.runs] for arm in arms]
    lead = (
        "Aligned sentences through every layer of the runs' models (0 is the embedding). Mean over the runs of a "
        f"recipe that were analysed, bands (of {MOST_BANDS} recipes at most) over all of them. "
        + _asked(arms, found)
    ).strip()
    if not any(told for runs in found for told in runs):
        spec = Figure("layer-curves", "Representations", wide=True)
        missing = nothing_beside(spec, arms, "analyze runs/{} --text FOLDER", "analysed")
        return Section("representations", "Representations", lead, (missing,))
    figures = [_curve(arms, found, name, title) for name, title in CURVES.items()]
    return Section("representations", "Representations", lead, (*figures, _layers_table(arms, found)))


def _model(run: Run) -> Told:
    """The run's own part of its analysis; ``--against`` puts another model's beside it."""
    models = of_run(run).models
    return next((model for model in models if model["model"] == run.name), models[0] if models else {})


def _asked(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> str:
    """What was looked at, what does not compare, and which runs were not analysed."""
    looked = [told for runs in found for told in runs if told]
    words = [verdict(arms, found, READERS, "analysed")]
    if looked and not words[0].startswith("DO NOT"):
        count = number(looked[0].get("sentences"))
        words.insert(0, f"{len(looked[0]['languages'])} languages, {count:.0f} sentences.")
    if looked and (missing := without(arms, found)):
        words.append(f"Not analysed: {', '.join(missing)}.")
    return " ".join(word for word in words if word)


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
    measured = bool(series) and any(np.isfinite(line.values).any() for line in series)
    chance = _chance(found, numbers, name)
    if np.isfinite(chance).any():
        series.append(Series("chance", chance, "c7 d1"))
    spec = Figure(f"layer-{name}", title[0].upper() + title[1:], height=220, axis="layer")
    if not measured:
        return frame.missing(spec, "Not measured: these models have no gated MLP that analyze knows.")
    return line_chart(spec, np.array(numbers, dtype=np.float64), series, points=len(numbers) <= 40, digits=3)


def _chance(found: Sequence[Sequence[Told]], numbers: Sequence[int], name: str) -> Array:
    """What a model without any such structure would get, layer by layer; NaN where nobody knows."""
    looked = [told for runs in found for told in runs if told]
    own = _column(looked, numbers, f"{name}_chance")
    if own.size and np.isfinite(own).any():
        return own.mean(axis=0)
    known = {number(mapping(told.get("chance")).get(name)) for told in looked}
    return np.full(len(numbers), known.pop() if len(known) == 1 else math.nan)


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
