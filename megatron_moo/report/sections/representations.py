"""What ``megatron-moo analyze`` found in the layers of the run's model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from megatron_moo.analyze.curves import CURVES, SHORT
from megatron_moo.report import units
from megatron_moo.report.beside import ANALYSIS_DIR, ANALYSIS_FILE, mapping, number, sequence
from megatron_moo.report.charts import frame, palette
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Frame, heat_map, ordered_colours
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.charts.scatter import Cloud, scatter
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.records import Array
from megatron_moo.report.sections.conflict import rows_height
from megatron_moo.report.sections.evaluation import which_step
from megatron_moo.report.sections.room import Room, Section

CHOSEN = 7  # layers whose matrices are shown one by one
MOST_POINTS = 60  # of a language in a plane
MATRICES = {
    "cka_matrix": ("cka-matrix", "CKA between languages", "linear CKA"),
    "retrieval_matrix": ("retrieval-matrix", "Translations found", "share found, row to column"),
}
Model = Mapping[str, Any]


def representations_section(room: Room) -> Section:
    """Curves over layers, matrices, owned neurons and planes of ``analysis.json``, or how to get them."""
    models = room.beside.models
    lead = (
        "Aligned sentences through every layer (0 is the embedding): how far apart languages lie, whether "
        "translations lie together, and which neurons one language owns. Languages with scripts of their own are "
        "apart in the embedding already: read the layers against layer 0 and against another model. "
        + " ".join(_which(room, model) for model in models)
    ).strip()
    if not models:
        spec = Figure("layer-curves", "Representations", wide=True)
        return Section("representations", "Representations", lead, (frame.missing(spec, _reason(room)),))
    figures = [_curve(models, name, title) for name, title in CURVES.items()]
    figures += [_between(room)] if room.beside.between else []
    for i, model in enumerate(models):
        figures += [_matrix(model, key, i) for key in MATRICES]
        figures.append(_owned(model, i))
        figures += _planes(room, model, i)
        figures.append(_table(model, i))
    return Section("representations", "Representations", lead, tuple(figures))


def _reason(room: Room) -> str:
    run, trouble = room.beside.run, room.beside.trouble.get(ANALYSIS_FILE)
    place = f"{ANALYSIS_DIR}/{ANALYSIS_FILE}"
    why = f"{place} could not be read: {trouble}." if trouble else "Not measured for this run."
    return (
        f"{why} “megatron-moo analyze {run} --text FOLDER” with aligned text writes {place} beside the run "
        f"(--against compares it with another model); “megatron-moo report {run}” then shows it here."
    )


def _which(room: Room, model: Model) -> str:
    step = number(model.get("step"))
    count = number(model.get("sentences"))
    words = f"{model['model']}: {len(model['languages'])} languages"
    words += f", {count:.0f} sentences." if math.isfinite(count) else "."
    return f"{words} {which_step(room, step)}" if model["model"] == room.name else words


def _layers(models: Sequence[Model]) -> list[int]:
    return sorted({layer["layer"] for model in models for layer in model["layers"]})


def _column(layers: Sequence[Mapping[str, Any]], numbers: Sequence[int], name: str) -> Array:
    told = {layer["layer"]: number(layer.get(name)) for layer in layers}
    return np.array([told.get(one, math.nan) for one in numbers], dtype=np.float64)


def _curve(models: Sequence[Model], name: str, title: str) -> Markup:
    numbers = _layers(models)
    series = [
        Series(model["model"], _column(model["layers"], numbers, name), palette.category(i))
        for i, model in enumerate(models)
    ]
    own = _column(models[0]["layers"], numbers, f"{name}_chance")  # some measures have one for every layer
    chance = (
        own
        if np.isfinite(own).any()
        else np.full(len(numbers), number(mapping(models[0].get("chance")).get(name)))
    )
    if np.isfinite(chance).any():
        series.append(Series("chance", chance, "c7 d1"))
    spec = Figure(f"layer-{name}", title[0].upper() + title[1:], height=220, axis="layer")
    if not any(np.isfinite(line.values).any() for line in series[: len(models)]):
        return frame.missing(spec, "Not measured: this model has no gated MLP that analyze knows.")
    return line_chart(spec, np.array(numbers, dtype=np.float64), series, points=len(numbers) <= 40, digits=3)


def _between(room: Room) -> Markup:
    layers = [{**layer, "layer": i} for i, layer in enumerate(room.beside.between)]
    numbers = [layer["layer"] for layer in layers]
    series = [Series("all languages", _column(layers, numbers, "cka"), "c7 heavy")]
    chance = _column(layers, numbers, "chance")
    if np.isfinite(chance).any():
        series.append(Series("chance", chance, "c7 d1"))
    by = [{**mapping(layer.get("cka_by")), "layer": layer["layer"]} for layer in layers]
    for i, tag in enumerate(room.beside.models[0]["languages"]):
        series.append(Series(tag, _column(by, numbers, tag), room.colours.get(tag, palette.category(i))))
    names = " and ".join(model["model"] for model in room.beside.models[:2])
    note = "1: the same sentences lie the same way to each other in both models; the lower, the more a layer changed."
    spec = Figure("layer-between", f"CKA between {names}", "same sentences", note, wide=True, axis="layer")
    x = np.array(numbers, dtype=np.float64)
    return line_chart(spec, x, series, points=len(numbers) <= 40, digits=3)


def _matrix(model: Model, key: str, index: int) -> Markup:
    plot, title, legend = MATRICES[key]
    tags = model["languages"]
    known = [
        (layer["layer"], m)
        for layer in model["layers"]
        if (m := square(layer.get(key), len(tags))) is not None
    ]
    frames = []
    if known:
        frames.append(Frame("mean over layers", np.mean([matrix for _, matrix in known], axis=0)))
        chosen = sorted({round(i) for i in np.linspace(0, len(known) - 1, CHOSEN)})
        frames += [Frame(f"layer {known[i][0]}", known[i][1]) for i in chosen]
    spec = Figure(f"{plot}-{index}", f"{model['model']}: {title}", height=max(240, 15 * len(tags)))
    values = np.concatenate([one.values.ravel() for one in frames]) if frames else np.zeros(0)
    off = values[values < 1] if values.size else values
    colours = ordered_colours("b", off)
    return heat_map(spec, frames, tags, Axis(names=tags), colours, blank_diagonal=True, legend=legend)


def square(value: object, size: int) -> Array | None:
    """A [size, size] matrix of finite numbers, or None."""
    try:
        matrix = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return matrix if matrix.shape == (size, size) and np.isfinite(matrix).all() else None


def _owned(model: Model, index: int) -> Markup:
    layers = [layer for layer in model["layers"] if mapping(layer.get("owned_by"))]
    tags = model["languages"]
    table = np.array(
        [[number(mapping(layer["owned_by"]).get(tag)) for layer in layers] for tag in tags], dtype=np.float64
    ).reshape(len(tags), len(layers))
    spec = Figure(
        f"owned-{index}",
        f"{model['model']}: MLP neurons that one language owns",
        "neurons per layer",
        "A neuron is owned when its activations have an effective number of languages exp(entropy) below 1.5 "
        "(like LAPE, Tang et al. 2024).",
        height=rows_height(len(tags)),
        wide=True,
    )
    if not layers:
        return frame.missing(spec, "Not measured: this model has no gated MLP that analyze knows.")
    columns = Axis(names=tuple(str(layer["layer"]) for layer in layers))
    return heat_map(spec, [Frame("", table)], tags, columns, ordered_colours("o", table), legend="neurons")


def _planes(room: Room, model: Model, index: int) -> list[Markup]:
    layers = model["layers"]
    tags = model["languages"]
    figures = []
    last = len(layers) - 1
    for i in sorted({0, last // 3, 2 * last // 3, last}):
        spec = Figure(
            f"plane-{index}-{layers[i]['layer']}",
            f"{model['model']}, layer {layers[i]['layer']}: first two principal components",
            note=f"A point a sentence, {MOST_POINTS} a language at most; axes are stretched to the figure.",
            height=260,
        )
        clouds: list[Cloud] = []
        for tag, points in zip(tags, sequence(layers[i].get("plane")), strict=False):
            pairs = [p for p in sequence(points) if len(sequence(p)) == 2][:MOST_POINTS]
            array = np.array([[number(a), number(b)] for a, b in pairs], dtype=np.float64).reshape(-1, 2)
            clouds.append(Cloud(tag, array, room.colours.get(tag, palette.category(len(clouds)))))
        figures.append(scatter(spec, clouds))
    return figures


def _table(model: Model, index: int) -> Markup:
    rows = []
    for layer in model["layers"]:
        values = [number(layer.get(name)) for name in CURVES]
        cells = tuple(Cell(f"{v:.3f}" if math.isfinite(v) else units.ABSENT, v) for v in values)
        rows.append(TableRow(str(layer["layer"]), cells))
    note = "; ".join(f"{short}: {title}" for short, title in zip(SHORT, CURVES.values(), strict=True)) + "."
    spec = Figure(f"analysis-table-{index}", f"{model['model']}: all layers", "", note, wide=True)
    return table(spec, ("layer", *SHORT), rows)
