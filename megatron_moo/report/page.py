"""The report page of a run: one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from megatron_moo.errors import MooError
from megatron_moo.report import units
from megatron_moo.report.beside import read_beside
from megatron_moo.report.html import Tile, fill, put
from megatron_moo.report.metrics import METRICS_FILE, RunMetrics, read_metrics, stopped_line
from megatron_moo.report.sections import SECTIONS, Room
from megatron_moo.report.sections.cosine import mean_cosine
from megatron_moo.report.summary import Change, RunSummary, summarize
from megatron_moo.report.table import REPORT_FILE

RECIPE_FILE = "recipe.yaml"
MOST_STEPS_NAMED = 8


def write_report(run_dir: Path) -> Path:
    """Write ``run_dir/report.html`` and return its path.

    Raises:
        MooError: the run has no metrics, or none of a training step yet.
    """
    return put(run_dir / REPORT_FILE, render(run_dir))


def render(run_dir: Path) -> str:
    """The page of a run as text.

    Raises:
        MooError: the run has no metrics, or none of a training step yet.
    """
    metrics = read_metrics(run_dir)
    if not metrics.steps:
        todo = "wait for the first step"
        raise MooError(f"{METRICS_FILE} has no training step yet", where=str(run_dir), todo=todo)
    name = run_dir.resolve().name
    room = Room(metrics, summarize(metrics), name, read_beside(run_dir))
    return fill(
        "page.html.j2",
        kind="run report",
        name=name,
        state=state(metrics),
        facts=list(_facts(room)),
        tiles=list(_tiles(room)),
        warnings=list(warnings(metrics)),
        sections=[section(room) for section in SECTIONS],
        recipe=_recipe(run_dir),
    )


def _recipe(run_dir: Path) -> str | None:
    path = run_dir / RECIPE_FILE
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None


def state(metrics: RunMetrics) -> str:
    """How far the run is, in words."""
    last, asked = metrics.steps[-1].step, metrics.train_iters
    if metrics.finished and metrics.stopped is not None:
        line = stopped_line(metrics.stopped)
        return line[0].upper() + line[1:]
    if metrics.finished:
        return f"Finished at step {last:,}" + (f" of {asked:,}" if asked and asked != last else "")
    return f"Step {last:,}" + (f" of {asked:,}" if asked else "") + ", still running or interrupted"


def _facts(room: Room) -> Iterator[str]:
    summary = room.summary
    if summary.method:
        yield summary.method + (f", weights per {summary.block}" if summary.block else "")
    objectives = len(room.metrics.objectives)
    seen = len(summary.seen or summary.train)
    yield _counted(seen, "language") + (f", {len(summary.unseen)} unseen" if summary.unseen else "")
    if objectives not in (0, seen):
        yield _counted(objectives, "objective")
    if room.metrics.blocks:
        yield _counted(len(room.metrics.blocks), "block")
    started = [event.fields.get("time") for event in room.metrics.events if event.event == "start"]
    if started and isinstance(started[0], int | float) and math.isfinite(started[0]):
        yield f"started {datetime.fromtimestamp(started[0], UTC):%Y-%m-%d %H:%M} UTC"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _tiles(room: Room) -> Iterator[Tile]:
    summary = room.summary
    seen = summary.seen or tuple(summary.train)
    yield _losses("Training loss", summary, summary.train, seen)
    if summary.held_out:
        yield _losses("Held-out, seen", summary, summary.held_out, seen)
    if summary.unseen:
        yield _losses("Held-out, unseen", summary, summary.held_out, summary.unseen)
    yield from _worst(summary)
    if math.isfinite(summary.conflict.end):
        detail = f"pairs with a negative cosine; {units.percent(summary.conflict.start)} in the first steps"
        yield Tile("Conflict rate", units.percent(summary.conflict.end), detail)
    yield from _cosines(room)
    if math.isfinite(summary.tokens_per_s):
        detail = f"median; {units.count(sum(summary.tokens.values()))} tokens in all"
        yield Tile("Tokens per second", units.count(summary.tokens_per_s), detail)


def _losses(title: str, summary: RunSummary, losses: Mapping[str, Change], tags: tuple[str, ...]) -> Tile:
    change = summary.mean(losses, tags)
    value = f"{units.loss(change.start)} → {units.loss(change.end)}"
    return Tile(title, value, f"nats per token, {summary.mean_of(tags)}")


def _worst(summary: RunSummary) -> Iterator[Tile]:
    """The language with the highest loss: in bits per byte, which depend on how many bytes a script's letters take."""
    held_out = {tag: change for tag, change in summary.bits_per_byte.items() if tag in summary.seen}
    worst = summary.worst(held_out or summary.train)
    if worst is not None:
        where = "bits per byte, held-out, at the end" if held_out else "nats per token, training, at the end"
        mind = "comparable between models, not between scripts"
        yield Tile("Worst language, seen", units.loss(worst[1].end), f"{worst[0]}, {where}; {mind}")
    if held_out:
        bits = summary.mean(summary.bits_per_byte, summary.seen)
        yield Tile(
            "Bits per byte, seen",
            f"{units.loss(bits.start)} → {units.loss(bits.end)}",
            f"held-out, {summary.mean_of(summary.seen)}, each language counted once",
        )


def _cosines(room: Room) -> Iterator[Tile]:
    between = mean_cosine(room.moos[-room.summary.window :])
    if not math.isfinite(between):
        return
    same = room.summary.cosine_same
    detail = (
        f"same language, other batch: {same:.2f}"
        if math.isfinite(same)
        else "same-language cosine not measured"
    )
    yield Tile("Cosine between languages", f"{between:.2f}".replace("-", "−"), f"mean of pairs; {detail}")


def warnings(metrics: RunMetrics) -> Iterator[str]:
    """What a reader should know before believing the plots."""
    lost: dict[str, list[int]] = {}
    for step in metrics.steps:
        for tag, value in step.loss.items():
            if not math.isfinite(value):
                lost.setdefault(tag, []).append(step.step)
    for tag, steps in lost.items():
        yield f"The training loss of {tag} was not finite at {_steps(steps)}."
    dropped: dict[str, list[int]] = {}
    for step in metrics.steps:
        for name in step.moo.dropped if step.moo else ():
            dropped.setdefault(name, []).append(step.step)
    for name, steps in dropped.items():
        yield f"The gradient of {name} was dropped at {_steps(steps)}."
    if metrics.unreadable_lines:
        yield f"{metrics.unreadable_lines} line(s) of {METRICS_FILE} could not be read and are left out."


def _steps(steps: list[int]) -> str:
    named = ", ".join(f"{step:,}" for step in steps[:MOST_STEPS_NAMED])
    more = f" and {len(steps) - MOST_STEPS_NAMED:,} more" if len(steps) > MOST_STEPS_NAMED else ""
    return f"step{'s' if len(steps) > 1 else ''} {named}{more}"
