"""The sections of a comparison's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from markupsafe import Markup

from megatron_moo.evaluate.arms import (
    MOST_BANDS,
    Arm,
    Both,
    Spread,
    bits_of,
    held_out,
    point,
    series,
    spread,
    trained,
    worst_of,
)
from megatron_moo.evaluate.compare import Difference, Run
from megatron_moo.evaluate.compare_beside import evaluation_section, representations_section
from megatron_moo.report import units
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.bars import panels
from megatron_moo.report.charts.forest import ForestRow, Point, forest, written
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.heat import Axis, Frame, heat_map, ordered_colours
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.charts.scale import linear
from megatron_moo.report.charts.table import Cell, TableRow, table
from megatron_moo.report.metrics import RunMetrics
from megatron_moo.report.page import state
from megatron_moo.report.records import MooRecord
from megatron_moo.report.sections import Section
from megatron_moo.report.sections.conflict import rows_height
from megatron_moo.report.sections.cosine import mean_cosine
from megatron_moo.report.summary import end_window, mean

BITS = "bits per byte"
MOST_ROWS = 48  # blocks; more of them become a heat map
MEANS = {"seen": "mean of seen", "unseen": "mean of unseen", "worst": "worst seen"}


def shown(value: float) -> str:
    """A difference in bits per byte."""
    return units.signed(value, 4)


def difference_section(both: Both) -> Section:
    """Forest plots of every arm against the reference, and their numbers."""
    reference = both.arms[0].short
    lead = (
        f"Bits per byte of held-out text at the last validation, each recipe minus {reference}, run by run over "
        "pairs of one seed: left of the line it is better. Heavy: mean difference, with a 95 % bootstrap interval "
        "over pairs; faint: the pairs themselves. No interval is corrected for the number of rows or recipes, and none "
        "says anything about other data, sizes or lengths of training."
    )
    figures = [_forest(both, arm, i) for i, arm in enumerate(both.arms[1:])]
    return Section("difference", "Differences", lead, (*figures, _difference_table(both)))


def _forest(both: Both, arm: Arm, index: int) -> Markup:
    rows = []
    for what, item in both.found.differences[arm.name].items():
        ends = (item.low, item.high) if item.pairs > 1 else (math.nan, math.nan)
        point = Point(arm.short, item.mean, arm.classes, *ends, single=item.each if item.pairs > 1 else ())
        rows.append(ForestRow(MEANS.get(what, what), (point,), heavy=what in MEANS))
    spec = Figure(
        f"forest-{index}",
        f"{arm.name} minus {both.arms[0].name}",
        BITS,
        f"Left of the line: {arm.short} is better. Right: {both.arms[0].short} is better.",
        wide=True,
    )
    return forest(spec, rows, reference=0.0, digits=4, sign=True)


def _difference_table(both: Both) -> Markup:
    rows = []
    for arm in both.arms[1:]:
        for what, item in both.found.differences[arm.name].items():
            cells = (
                Cell(arm.short), _number(item.base), _number(item.base + item.mean), Cell(shown(item.mean), item.mean),
                Cell(_interval(item), item.low), Cell(str(item.pairs), item.pairs),
                Cell("  ".join(shown(one) for one in item.each)),
            )  # fmt: skip
            rows.append(TableRow(MEANS.get(what, what), cells, arm.classes))
    spec = Figure(
        "difference-table",
        "All differences",
        BITS,
        "Reference and recipe: means over the paired runs. Each pair: in the order of seeds. Tap a heading to sort.",
        wide=True,
    )
    headings = ("", "recipe", "reference", "recipe's", "difference", "95 %", "pairs", "each pair")
    return table(spec, headings, rows)


def _interval(item: Difference) -> str:
    return "one pair" if item.pairs < 2 else f"{shown(item.low)} to {shown(item.high)}"


def _number(value: float, digits: int = 4) -> Cell:
    return Cell(written(value, digits, False), value)


def losses_section(both: Both) -> Section:
    """Bits per byte of every language on all sides, at the end and over time."""
    lead = (
        "Held-out text of every language, all sides beside each other. Lines reach from the lowest to the highest run "
        "of a recipe: the spread between seeds, while the differences above are taken within a seed and can be smaller."
    )
    return Section(
        "losses", "Loss per language", lead, (_languages(both), _panels(both), _losses_table(both))
    )


def _rows(both: Both) -> list[tuple[str, Callable[[Arm], Spread], bool]]:
    rows: list[tuple[str, Callable[[Arm], Spread], bool]] = [
        (tag, lambda arm, tag=tag: bits_of(arm, (tag,)), False)  # type: ignore[misc]
        for tag in (*both.seen, *both.unseen)
    ]
    rows.append((MEANS["seen"], lambda arm: bits_of(arm, both.seen), True))
    if both.unseen:
        rows.append((MEANS["unseen"], lambda arm: bits_of(arm, both.unseen), True))
    rows.append((MEANS["worst"], lambda arm: worst_of(arm, both.seen), True))
    return rows


def _languages(both: Both) -> Markup:
    rows = [
        ForestRow(name, tuple(point(arm, pick(arm)) for arm in both.arms), heavy)
        for name, pick, heavy in _rows(both)
    ]
    spec = Figure("bits-languages", "Held-out loss per language at the end", BITS, wide=True)
    return forest(spec, rows, digits=4)


def _panels(both: Both) -> Markup:
    found = [(tag, series(both.arms, held_out((tag,)))) for tag in (*both.seen, *both.unseen)]
    x = max((steps for _, (steps, _, _) in found), key=len)
    named = [(tag, lines) for tag, (steps, lines, _) in found if len(steps) == len(x)]
    note = "Mean over the runs of a recipe at every validation."
    return panels(Figure("bits-panels", "Held-out loss over time", BITS, note, wide=True), x, named)


def _losses_table(both: Both) -> Markup:
    rows: list[TableRow] = []
    foot: list[TableRow] = []
    for name, pick, heavy in _rows(both):
        cells: list[Cell] = []
        for arm in both.arms:
            values = pick(arm)
            cells += [_number(values.mean), Cell(_range(values), values.low)]
        part = "" if heavy else "seen" if name in both.seen else "unseen"
        (foot if heavy else rows).append(TableRow(name, (Cell(part), *cells)))
    headings = ["language", ""]
    for arm in both.arms:
        headings += [arm.short, "runs"]
    note = "Means over all runs of a recipe, paired or not, and the lowest and highest run. Tap a heading to sort."
    return table(Figure("bits-table", "All losses", BITS, note, wide=True), headings, [*rows, *foot])


def _range(values: Spread) -> str:
    if len(values.each) < 2 or not math.isfinite(values.mean):
        return ""
    return f"{values.low:.4f} to {values.high:.4f}"


def curves_section(both: Both) -> Section:
    """Loss curves per arm, and the difference over time."""
    lead = (
        f"Lines are means over the runs of a recipe, bands (of {MOST_BANDS} recipes at most) reach from the lowest to "
        "the highest run. A difference that stands at the end only may be chance; one that stands from early on and "
        "stays is worth more runs."
    )
    figures = [
        _curve(
            both, "train-curve", "Training loss, mean of seen languages", "nats per token", trained(both.seen)
        ),
        _curve(both, "seen-curve", "Held-out, mean of seen languages", BITS, held_out(both.seen)),
    ]
    if both.unseen:
        figures.append(
            _curve(both, "unseen-curve", "Held-out, mean of unseen languages", BITS, held_out(both.unseen))
        )
    figures.append(_difference_curve(both))
    return Section("curves", "Loss curves", lead, tuple(figures))


def _curve(
    both: Both, plot: str, title: str, unit: str, pick: Callable[[RunMetrics], Mapping[int, float]]
) -> Markup:
    x, lines, note = series(both.arms, pick)
    if plot != "train-curve":
        note = note.replace("step", "validation")
    return line_chart(Figure(plot, title, unit, note, height=280), x, lines, points=len(x) <= 30)


def _difference_curve(both: Both) -> Markup:
    """Mean over pairs at every validation, seen and unseen."""
    reference = {
        run.seed: metrics for run, metrics in zip(both.arms[0].runs, both.arms[0].metrics, strict=True)
    }
    steps = sorted({valid.step for arm in both.arms for one in arm.metrics for valid in one.valids})
    lines = []
    for arm in both.arms[1:]:
        pairs = [
            (one, reference[run.seed])
            for run, one in zip(arm.runs, arm.metrics, strict=True)
            if run.seed in reference
        ]
        for part, tags in (("", both.seen), (", unseen", both.unseen)):
            if not tags:
                continue
            pick = held_out(tags)
            told = [(pick(ours), pick(theirs)) for ours, theirs in pairs]
            rows = np.array(
                [[a.get(step, math.nan) - b.get(step, math.nan) for step in steps] for a, b in told],
                dtype=np.float64,
            )
            name = (part.lstrip(", ") or "seen") if len(both.arms) == 2 else f"{arm.short}{part}"
            banded = len(rows) > 1 and len(both.arms) <= MOST_BANDS
            ends = (rows.min(axis=0), rows.max(axis=0)) if banded else (None, None)
            classes = f"{arm.classes.split()[0]} {'d1' if part else 'd0'}"
            lines.append(Series(name, rows.mean(axis=0), classes, *ends))
    spec = Figure(
        "difference-curve",
        f"Difference to {both.arms[0].short} over time",
        BITS,
        "Mean over pairs, bands over all of them; below 0 the recipe is better. Dashed: unseen languages.",
        height=280,
    )
    parts = [part for line in lines for part in (line.values, line.low, line.high) if part is not None]
    y = linear(np.append(np.concatenate(parts), 0.0)) if parts else None
    return line_chart(spec, np.array(steps, dtype=np.float64), lines, y=y, points=len(steps) <= 30, digits=3)


def conflict_section(both: Both) -> Section:
    """How often gradients point against each other on either side."""
    lead = (
        "Every run measures conflict the same way, whatever its method does about it: the share of (block, pair of "
        "objectives) with a negative cosine, and the mean cosine over the whole model with the cosine between two "
        "batches of one language beside it, which is what noise leaves of 1. Where losses differ, so does the place "
        "at which gradients are taken: less conflict is no merit by itself."
    )
    return Section("conflict", "Conflict", lead, (_conflict(both), _cosine(both), _conflict_blocks(both)))


def _conflict(both: Both) -> Markup:
    def pick(metrics: RunMetrics) -> Mapping[int, float]:
        return {step.step: 100 * step.moo.conflict_rate for step in metrics.steps if step.moo}

    x, lines, note = series(both.arms, pick)
    spec = Figure("conflict-time", "Conflict rate, all blocks", "% of pairs", note, height=280)
    return line_chart(spec, x, lines, zero=True, digits=3)


def _cosine(both: Both) -> Markup:
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
    if len(floor_x) and len(x):
        for line in floors:
            values = np.interp(x, floor_x, line.values, left=math.nan, right=math.nan)
            lines.append(
                Series(f"{line.name}, same language", values, line.classes, text=f"same: {line.name}")
            )
    spec = Figure(
        "cosine-time",
        "Cosine between objectives",
        "mean of pairs",
        f"Dashed: same language. {note}",
        height=280,
    )
    return line_chart(spec, x, lines, digits=3)


def _conflict_blocks(both: Both) -> Markup:
    blocks: dict[str, None] = {}
    for arm in both.arms:
        for metrics in arm.metrics:
            blocks.update(dict.fromkeys(metrics.blocks))
    told = {
        arm.short: {block: [_block_at_end(metrics, block) for metrics in arm.metrics] for block in blocks}
        for arm in both.arms
    }
    note = "Mean of each run's last steps. Where a recipe has no such block, it has no point."
    spec = Figure("conflict-blocks", "Conflict rate per block at the end", "share of pairs", note, wide=True)
    if len(blocks) <= MOST_ROWS:
        rows = [
            ForestRow(block, tuple(point(arm, spread(told[arm.short][block])) for arm in both.arms))
            for block in blocks
        ]
        return forest(spec, rows, zero=True) if rows else frame.missing(spec, "Not measured in these runs.")
    values = np.array([[mean(told[arm.short][block]) for arm in both.arms] for block in blocks])
    return heat_map(
        replace(spec, height=rows_height(len(blocks))),
        [Frame("", values)],
        tuple(blocks),
        Axis(names=tuple(arm.short for arm in both.arms)),
        ordered_colours("o", values, least=0.5),
        legend="share of pairs with a negative cosine",
    )


def _block_at_end(metrics: RunMetrics, block: str) -> float:
    last: list[MooRecord] = [
        step.moo for step in metrics.steps[-end_window(len(metrics.steps)) :] if step.moo
    ]
    return mean(float(moo.conflict[moo.blocks.index(block)]) for moo in last if block in moo.blocks)


def tokens_section(both: Both) -> Section:
    """Token shares that each side drew."""
    lead = (
        "Tokens that entered the training loss, as a share of each run's own. Recipes with other shares saw other "
        "data: a difference between them is one of sampling too."
    )
    return Section("tokens", "Token shares", lead, (_shares(both), _tokens_table(both)))


def _share(arm: Arm, tag: str) -> Spread:
    return spread(
        [100 * one.tokens.get(tag, 0.0) / (sum(one.tokens.values()) or math.nan) for one in arm.summaries]
    )


def _token_tags(both: Both) -> list[str]:
    return list(dict.fromkeys(tag for arm in both.arms for one in arm.summaries for tag in one.tokens))


def _shares(both: Both) -> Markup:
    rows = [
        ForestRow(tag, tuple(point(arm, _share(arm, tag)) for arm in both.arms)) for tag in _token_tags(both)
    ]
    spec = Figure("token-shares", "Share of the tokens", "%, mean and spread over the runs", wide=True)
    return (
        forest(spec, rows, digits=1, zero=True)
        if rows
        else frame.missing(spec, "Not measured in these runs.")
    )


def _tokens_table(both: Both) -> Markup:
    rows = []
    for tag in _token_tags(both):
        cells = []
        for arm in both.arms:
            tokens = mean(one.tokens.get(tag, 0.0) for one in arm.summaries)
            asked = 100 * mean(one.drawn.get(tag, {}).get("asked", math.nan) for one in arm.summaries)
            cells += [_number(asked, 1), _number(_share(arm, tag).mean, 1), Cell(units.count(tokens), tokens)]
        rows.append(TableRow(tag, tuple(cells)))
    headings = ["language"]
    for arm in both.arms:
        headings += [f"{arm.short}: asked %", "drawn %", "tokens a run"]
    return table(Figure("tokens-table", "Asked and drawn", "means over runs", wide=True), headings, rows)


def recipes_section(both: Both) -> Section:
    """What the sides were told, what they ran on, and every run."""
    lead = "Flags that are not alike in all runs, the packages, and the runs themselves."
    return Section(
        "recipes", "Recipes and versions", lead, (_recipes(both), _versions(both), _runs_table(both))
    )


def _by_arm(both: Both, pick: Callable[[Run], Mapping[str, object]], only_different: bool) -> list[TableRow]:
    keys = sorted({key for arm in both.arms for run in arm.runs for key in pick(run)})
    rows = []
    for key in keys:
        told = [
            " | ".join(dict.fromkeys(_words(pick(run).get(key)) for run in arm.runs)) for arm in both.arms
        ]
        if not only_different or len(set(told)) > 1 or any("|" in words for words in told):
            rows.append(TableRow(key, tuple(Cell(words) for words in told)))
    return rows


def _words(value: object) -> str:
    if value is None:
        return "–"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _recipes(both: Both) -> Markup:
    rows = _by_arm(both, lambda run: run.flags, only_different=True)
    rows.append(
        TableRow("seed", tuple(Cell(" ".join(str(run.seed) for run in arm.runs)) for arm in both.arms))
    )
    rows.append(
        TableRow(
            "data",
            tuple(Cell(" | ".join(dict.fromkeys(run.data[:12] for run in arm.runs))) for arm in both.arms),
        )
    )
    spec = Figure("recipes-table", "Where the recipes differ", wide=True)
    return table(spec, ("flag", *(arm.short for arm in both.arms)), rows)


def _versions(both: Both) -> Markup:
    rows = _by_arm(both, lambda run: run.versions, only_different=False)
    spec = Figure("versions-table", "Versions", wide=True)
    if not rows:
        return frame.missing(spec, "The runs' recipes name no versions.")
    return table(spec, ("package", *(arm.short for arm in both.arms)), rows)


def _runs_table(both: Both) -> Markup:
    rows = []
    for arm in both.arms:
        for run, metrics, summary in zip(arm.runs, arm.metrics, arm.summaries, strict=True):
            seen = mean(run.bits.get(tag, math.nan) for tag in run.seen)
            speed = Cell(units.count(summary.tokens_per_s), summary.tokens_per_s)
            rows.append(
                TableRow(
                    run.name,
                    (
                        Cell(arm.short), Cell(str(run.seed), run.seed), Cell(state(metrics)),
                        Cell(units.count(run.tokens), run.tokens), _number(seen), speed,
                    ),
                    arm.classes,
                )
            )  # fmt: skip
    headings = ("run", "recipe", "seed", "state", "tokens", "bits per byte, seen", "tokens/s, median")
    return table(Figure("runs-table", "Runs", wide=True), headings, rows)


SECTIONS: Sequence[Callable[[Both], Section]] = (
    difference_section,
    losses_section,
    curves_section,
    conflict_section,
    tokens_section,
    evaluation_section,
    representations_section,
    recipes_section,
)
