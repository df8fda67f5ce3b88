"""The table that ends a run: what was lost and gained per language, in 80 columns."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from megatron_moo.report import units
from megatron_moo.report.metrics import read_metrics
from megatron_moo.report.summary import NOTHING, Change, RunSummary, summarize

REPORT_FILE = "report.html"
HEADERS = (
    "train\nstart",
    "train\nend",
    "held-out\nstart",
    "held-out\nend",
    "held-out\nchange",
    "bits per\nbyte",
)


def summary_table(run_dir: Path) -> Group:
    """The closing table of a run, as something rich can print (:func:`print_summary` adds where things are).

    Raises:
        MooError: the run has no metrics.
    """
    summary = summarize(read_metrics(run_dir))
    return Group(_losses(summary), _facts(summary))


def print_summary(console: Console, run_dir: Path) -> None:
    """Print :func:`summary_table`, the run folder and, where it exists, the report.

    Raises:
        MooError: the run has no metrics.
    """
    console.print(summary_table(run_dir))
    report = run_dir / REPORT_FILE
    for name, path in (("run folder", run_dir), ("report", report)):
        if path.exists():
            # On a line of its own and never broken, so that it can be copied.
            console.print(Text.assemble((f"{name:<23}", "dim"), str(path)), soft_wrap=True)


def _losses(summary: RunSummary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.title = "Loss in nats per token. Bits per byte: held-out, at the end."
    table.title_style = "dim"
    table.add_column("language", no_wrap=True, max_width=24)
    for header in HEADERS:
        table.add_column(header, justify="right", no_wrap=True)
    seen = summary.seen or tuple(summary.train)
    for tag in dict.fromkeys([*summary.train, *seen]):
        _row(
            table,
            tag,
            _get(summary.train, tag),
            _get(summary.held_out, tag),
            _get(summary.bits_per_byte, tag),
        )
    _mean_row(table, f"{summary.mean_of(seen)} seen", summary, seen)
    if summary.unseen:
        for tag in summary.unseen:
            _row(table, tag, NOTHING, _get(summary.held_out, tag), _get(summary.bits_per_byte, tag))
        _mean_row(table, f"{summary.mean_of(summary.unseen)} unseen", summary, summary.unseen)
    return table


def _mean_row(table: Table, name: str, summary: RunSummary, tags: tuple[str, ...]) -> None:
    train, held_out, bits = (
        summary.mean(changes, tags) for changes in (summary.train, summary.held_out, summary.bits_per_byte)
    )
    _row(table, name, train, held_out, bits, style="bold")
    table.add_section()


def _row(
    table: Table, name: str, train: Change, held_out: Change, bits: Change, style: str | None = None
) -> None:
    table.add_row(
        escape(name),
        units.loss(train.start),
        units.loss(train.end),
        units.loss(held_out.start),
        units.loss(held_out.end),
        units.signed(held_out.by),
        units.loss(bits.end),
        style=style,
    )


def _get(changes: Mapping[str, Change], tag: str) -> Change:
    return changes.get(tag, NOTHING)


def _facts(summary: RunSummary) -> Table:
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    for name, value in _fact_lines(summary):
        facts.add_row(name, Text(value))
    return facts


def _fact_lines(summary: RunSummary) -> Iterator[tuple[str, str]]:
    if summary.method:
        weights = f", one set of weights per {summary.block}" if summary.block else ""
        yield "method", f"{summary.method}{weights}"
    yield from _worst(summary)
    if math.isfinite(summary.conflict.end):
        start, end = units.percent(summary.conflict.start), units.percent(summary.conflict.end)
        yield (
            "conflict rate",
            f"{start} at the start, {end} at the end (pairs with a negative cosine, all blocks)",
        )
    if math.isfinite(summary.cosine_same):
        yield "cosine, same language", f"{summary.cosine_same:.2f} (two batches of one language)"
    yield from _farthest(summary)
    tokens = units.count(sum(summary.tokens.values()))
    yield "tokens", f"{tokens} in {summary.steps} steps"
    if math.isfinite(summary.tokens_per_s):
        pace = f"{units.count(summary.tokens_per_s)} tokens/s"
        yield "speed", f"{pace}, {units.seconds(summary.step_time_s)} a step (medians)"


def _worst(summary: RunSummary) -> Iterator[tuple[str, str]]:
    parts = []
    for part, tags in (("seen", summary.seen), ("unseen", summary.unseen)):
        bits = {tag: change for tag, change in summary.bits_per_byte.items() if tag in tags}
        worst = summary.worst(bits)
        if worst is not None:
            parts.append(f"{worst[0]} ({part}, {units.loss(worst[1].end)} bits per byte)")
    if parts:
        yield "worst held-out", f"{', '.join(parts)}; comparable between models, not between scripts"


def _farthest(summary: RunSummary) -> Iterator[tuple[str, str]]:
    """The language whose drawn share of the tokens lies farthest from the law's."""
    apart = {tag: abs(told["drawn"] - told["asked"]) for tag, told in summary.drawn.items() if _told(told)}
    if not apart:
        return
    tag = max(apart, key=lambda name: apart[name])
    asked, expected, drawn = (
        units.percent(summary.drawn[tag][key], 1) for key in ("asked", "expected", "drawn")
    )
    lifted = f", {expected} expected of presence {summary.presence}" if expected != asked else ""
    yield "token shares", f"farthest from the law: {tag}, {asked} asked, {drawn} drawn{lifted}"


def _told(shares: Mapping[str, float]) -> bool:
    return all(math.isfinite(shares.get(key, math.nan)) for key in ("asked", "expected", "drawn"))
