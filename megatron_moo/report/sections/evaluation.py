"""What ``megatron-moo eval`` measured of the run's model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from megatron_moo.report import units
from megatron_moo.report.beside import EVAL_FILE, mapping, number, sequence
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.forest import ForestRow, Point, forest
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.sections.room import Room, Section


def evaluation_section(room: Room) -> Section:
    """Losses, cloze and samples of ``eval.json``, or how to get them."""
    found = room.beside.evaluation
    lead = (
        "What megatron-moo eval measured of a checkpoint of this run: losses over windows of held-out text, an aligned "
        "cloze (the true continuation among four, the same items in every language) and what the model writes. "
        + _which(room, found)
    ).strip()
    if not found:
        spec = Figure("eval-table", "Evaluation table", wide=True)
        return Section("evaluation", "Evaluation", lead, (frame.missing(spec, _reason(room)),))
    return Section(
        "evaluation", "Evaluation", lead, (_table(room, found), _cloze(room, found), *_samples(found))
    )


def _reason(room: Room) -> str:
    run, trouble = room.beside.run, room.beside.trouble.get(EVAL_FILE)
    why = f"{EVAL_FILE} could not be read: {trouble}." if trouble else "Not measured for this run."
    return (
        f"{why} “megatron-moo eval {run}” writes {EVAL_FILE} beside the run (with --text the cloze too); "
        f"“megatron-moo report {run}” then shows it here."
    )


def _which(room: Room, found: Mapping[str, Any]) -> str:
    return which_step(room, number(found.get("step")))


def which_step(room: Room, step: float) -> str:
    """Which checkpoint was looked at, and whether the run has gone on since."""
    if not math.isfinite(step):
        return ""
    last = room.steps[-1].step
    later = f"; the run has gone on to step {last:,} since" if last > step else ""
    return f"This is the checkpoint of step {step:,.0f}{later}."


def _table(room: Room, found: Mapping[str, Any]) -> Markup:
    languages = found["languages"]
    cloze = any(mapping(item.get("cloze")) for item in languages.values())
    harness = any(mapping(item.get("lm_eval")) for item in languages.values())
    against = found.get("relative_to")
    relative = any(math.isfinite(number(item.get("relative"))) for item in languages.values())
    headings = ["language", "", "nats per token", "bits per byte", "perplexity", "kB"]
    headings += [f"nats of the text, {against} = 1"] if relative else []
    headings += ["cloze", "95 %", "cloze, raw"] if cloze else []
    headings += ["lm-eval acc_norm", "lm-eval acc"] if harness else []
    rows = [
        TableRow(
            tag, (Cell(_part(room, tag)), *_cells(item, cloze, harness, relative)), room.colours.get(tag, "")
        )
        for tag, item in languages.items()
    ]
    words = [
        "Perplexity is per token, so it compares between models of one tokenizer only; bits per byte are comparable "
        "between models, not between scripts."
    ]
    if relative:
        words.append(f"Nats of the text: the same text in every language, as a multiple of {against}'s.")
    if cloze:
        words.append("Cloze: by log-probability per character, with Wilson's interval; raw: by its sum.")
    length = number(found.get("seq_length"))
    unit = f"windows of {length:.0f} tokens" if math.isfinite(length) else ""
    return table(Figure("eval-table", "Evaluation table", unit, " ".join(words), wide=True), headings, rows)


def _part(room: Room, tag: str) -> str:
    """Whether the run trained on a language, as far as its validation says."""
    return "seen" if tag in room.summary.seen else "unseen" if tag in room.summary.unseen else ""


def _cells(item: Mapping[str, Any], cloze: bool, harness: bool, relative: bool) -> list[Cell]:
    cells = [_decimals(item.get("loss"), 4), _decimals(item.get("bits_per_byte"), 4)]
    perplexity = number(item.get("perplexity"))
    cells.append(Cell(units.significant(perplexity, 4), perplexity))
    cells.append(_decimals(number(item.get("bytes")) / 1000, 0))
    if relative:
        cells.append(_decimals(item.get("relative"), 3))
    if cloze:
        told = mapping(item.get("cloze"))
        low, high = _ends(told)
        cells.append(_decimals(told.get("acc_norm"), 3))
        cells.append(Cell(f"{low:.3f} to {high:.3f}" if math.isfinite(low + high) else units.ABSENT, low))
        cells.append(_decimals(told.get("acc"), 3))
    if harness:
        told = mapping(item.get("lm_eval"))
        cells += [_decimals(told.get("acc_norm"), 3), _decimals(told.get("acc"), 3)]
    return cells


def _decimals(value: object, digits: int) -> Cell:
    known = number(value)
    return Cell(f"{known:.{digits}f}" if math.isfinite(known) else units.not_finite(known), known)


def _ends(cloze: Mapping[str, Any]) -> tuple[float, float]:
    ends = [number(end) for end in sequence(cloze.get("interval"))]
    return (ends[0], ends[1]) if len(ends) == 2 else (math.nan, math.nan)


def _cloze(room: Room, found: Mapping[str, Any]) -> Markup:
    told = mapping(found.get("cloze"))
    chance, items = number(told.get("chance")), number(told.get("items"))
    spec = Figure(
        "eval-cloze",
        "Aligned cloze",
        f"accuracy on {items:.0f} items" if math.isfinite(items) else "accuracy",
        "Lines are Wilson's 95 % intervals; the upright line is chance.",
        wide=True,
    )
    rows = []
    for tag, item in found["languages"].items():
        cloze = mapping(item.get("cloze"))
        if cloze:
            classes = room.colours.get(tag, "c0 d0")
            rows.append(ForestRow(tag, (Point(tag, number(cloze.get("acc_norm")), classes, *_ends(cloze)),)))
    if not rows:
        return frame.missing(
            spec,
            f"Not measured: the cloze needs aligned text, “megatron-moo eval {room.beside.run} --text FOLDER”.",
        )
    return forest(spec, rows, reference=chance)


def _samples(found: Mapping[str, Any]) -> list[Markup]:
    rows = []
    for tag, item in found["languages"].items():
        told = mapping(item.get("sample"))
        if told:
            words = (" ".join(str(told.get(key, "")).split()) for key in ("prompt", "text"))
            rows.append(TableRow(tag, tuple(Cell(text, words=True) for text in words)))
    if not rows:
        return []
    note = "The first words of a language's longest document, and what the model writes after them."
    spec = Figure("eval-samples", "Samples", "", note, wide=True)
    return [table(spec, ("language", "given", "written by the model"), rows)]
