"""What ``megatron-moo eval`` left beside the compared runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm, Both, Spread, spread
from megatron_moo.evaluate.cloze import wilson
from megatron_moo.evaluate.compare_sections.beside import (
    Reader,
    Told,
    differing,
    key,
    nothing_beside,
    of_run,
    per_language,
    verdict,
    without,
)
from megatron_moo.evaluate.compare_sections.words import number as cell
from megatron_moo.report import units
from megatron_moo.report.beside import mapping, number
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.forest import ForestRow, Point, forest
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.sections.room import Section

LOSSES = {"loss": "nats per token", "bits_per_byte": "bits per byte"}
ACCURACY = ("cloze", "acc_norm")
READERS: dict[str, Reader] = {
    "steps": key("step"),
    "window lengths": key("seq_length"),
    "texts": key("text"),
    "numbers of windows": key("windows"),
    "numbers of bytes": per_language("bytes"),
    "tokens before the text": key("bos"),
}


def _items(told: Told) -> object:
    """What the cloze asked: its hash, or the number of items of an older file."""
    cloze = mapping(told.get("cloze"))
    return told.get("items_hash") or cloze.get("items_hash") or cloze.get("items")


def evaluation_section(both: Both) -> Section:
    """Losses and cloze of every run's ``eval.json``: means over the runs of a recipe that have one."""
    arms = both.arms
    found = [[of_run(run).evaluation for run in arm.runs] for arm in arms]
    lead = (
        "What megatron-moo eval measured of the runs: losses over windows of held-out text and the aligned cloze (the "
        "true continuation among four, the same items in every language). " + _which(arms, found)
    ).strip()
    if not any(told for runs in found for told in runs):
        spec = Figure("eval-table", "Evaluation table", wide=True)
        missing = nothing_beside(spec, arms, "eval runs/{}", "evaluated")
        return Section("evaluation", "Evaluation", lead, (missing,))
    return Section("evaluation", "Evaluation", lead, (_table(both, found), _cloze(both, found)))


def _which(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> str:
    """Which checkpoints were looked at, what does not compare, and which runs were not evaluated."""
    looked = [told for runs in found for told in runs if told]
    words = [verdict(arms, found, READERS, "evaluated")]
    if looked and not words[0].startswith("DO NOT"):
        step, length = number(looked[0].get("step")), number(looked[0].get("seq_length"))
        words.insert(0, f"All of step {step:,.0f}, windows of {length:.0f} tokens.")
    if differing(found, {"items": _items}):
        words.append("DO NOT COMPARE: the runs' cloze asked different items.")
    if looked and (missing := without(arms, found)):
        words.append(f"Not evaluated: {', '.join(missing)}.")
    return " ".join(word for word in words if word)


def _tags(found: Sequence[Sequence[Told]]) -> list[str]:
    return list(
        dict.fromkeys(tag for runs in found for told in runs for tag in mapping(told.get("languages")))
    )


def _value(told: Told, tag: str, *keys: str) -> float:
    at: object = told["languages"].get(tag)
    for one in keys:
        at = mapping(at).get(one)
    return number(at)


def _over(runs: Sequence[Told], tags: Sequence[str], *keys: str) -> Spread:
    """A number, mean over ``tags``, over the runs that were evaluated."""
    values = [[_value(told, tag, *keys) for tag in tags] for told in runs if told]
    return spread([sum(each) / len(each) if each else math.nan for each in values])


def _rows(both: Both, found: Sequence[Sequence[Told]]) -> list[tuple[str, str, list[str]]]:
    """Name, part (seen, unseen; none of a mean) and languages of every row."""
    tags = _tags(found)
    part = {**dict.fromkeys(both.unseen, "unseen"), **dict.fromkeys(both.seen, "seen")}
    rows = [(tag, part.get(tag, "not trained, not validated"), [tag]) for tag in tags]
    for name in ("seen", "unseen"):
        own = [tag for tag in tags if part.get(tag) == name]
        if own:
            rows.append((f"mean of {len(own)} {name}", "", own))
    return rows


def _interval(runs: Sequence[Told], tags: Sequence[str], accuracy: float) -> tuple[float, float]:
    """Wilson's interval of a language's accuracy over the items; the runs answered the same ones."""
    if len(tags) > 1 or not math.isfinite(accuracy):
        return math.nan, math.nan
    counts = [_value(told, tags[0], "cloze", "items") for told in runs if told]
    if not counts or not all(map(math.isfinite, counts)):
        return math.nan, math.nan
    count = round(min(counts))
    return wilson(accuracy * count, count)  # type: ignore[arg-type]  # a mean of runs need not be whole


def _table(both: Both, found: Sequence[Sequence[Told]]) -> Markup:
    rows: list[TableRow] = []
    foot: list[TableRow] = []
    for name, part, tags in _rows(both, found):
        cells = [Cell(part)]
        for runs in found:
            cells += [cell(_over(runs, tags, loss).mean) for loss in LOSSES]
            accuracy = _over(runs, tags, *ACCURACY).mean
            low, high = _interval(runs, tags, accuracy)
            cells.append(Cell(f"{accuracy:.3f}" if math.isfinite(accuracy) else units.ABSENT, accuracy))
            cells.append(Cell(f"{low:.3f} to {high:.3f}" if math.isfinite(low + high) else units.ABSENT, low))
        (rows if part else foot).append(TableRow(name, tuple(cells)))
    headings = ["language", ""]
    for arm in both.arms:
        headings += [f"{arm.short}: {unit}" for unit in LOSSES.values()] + [f"{arm.short}: cloze", "95 %"]
    note = (
        "Means over the runs of a recipe. Cloze: by log-probability per character, with Wilson's 95 % interval over "
        "the items (not over seeds). Tap a heading to sort."
    )
    return table(Figure("eval-table", "Evaluation table", "", note, wide=True), headings, rows, foot)


def _cloze(both: Both, found: Sequence[Sequence[Told]]) -> Markup:
    clozes = [mapping(told.get("cloze")) for runs in found for told in runs]
    items = {number(cloze.get("items")) for cloze in clozes if cloze}
    count = f"{items.pop():.0f} items" if len(items) == 1 else "unequal numbers of items"
    note = (
        "Mean over the runs of a recipe, faint: the runs. Lines: Wilson's 95 % intervals over the items, which all "
        "runs share, so that they say nothing about seeds. The upright line is chance; heavy: means over languages."
    )
    spec = Figure("eval-cloze", "Aligned cloze", f"accuracy on {count}", note, wide=True)
    rows = []
    for name, part, tags in _rows(both, found):
        points = [_point(arm, runs, tags) for arm, runs in zip(both.arms, found, strict=True)]
        if any(math.isfinite(one.value) for one in points):
            marked = f"{name} (unseen)" if part == "unseen" else name
            rows.append(ForestRow(marked, tuple(points), heavy=not part))
    if not rows:
        return frame.missing(
            spec, "Not measured: the cloze needs aligned text, “megatron-moo eval RUN --text FOLDER”."
        )
    chances = {number(cloze.get("chance")) for cloze in clozes if cloze}
    known = [chance for chance in chances if math.isfinite(chance)]
    return forest(spec, rows, reference=known[0] if len(known) == 1 else math.nan)


def _point(arm: Arm, runs: Sequence[Told], tags: Sequence[str]) -> Point:
    values = _over(runs, tags, *ACCURACY)
    single = values.each if len(values.each) > 1 else ()
    return Point(arm.short, values.mean, arm.classes, *_interval(runs, tags, values.mean), single=single)
