"""Tables of an evaluation and of a comparison."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from megatron_moo.evaluate.cloze import FEWEST, RATIOS
from megatron_moo.evaluate.compare import Comparison, Difference


def show_evaluation(console: Console, found: Mapping[str, Any]) -> None:
    """Loss (nats per token), bits per byte, perplexity per token and cloze per language; samples below."""
    cloze, base, unseen = found.get("cloze"), found.get("relative_to"), found.get("unseen", ())
    # Narrow, so that nine columns fit in 80 characters.
    table = Table(
        title=f"{found['model']}: windows of {found['seq_length']} tokens", box=SIMPLE, padding=(0, 1, 0, 0)
    )
    for name in ("", "nats", "bits/byte", "ppl", "kB"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    if base:
        table.add_column(f"vs {base}", justify="right", no_wrap=True)
    for name in ("cloze", "95 %", "raw") if cloze else ():
        table.add_column(name, justify="right", no_wrap=True)
    for tag, item in found["languages"].items():
        cells = [f"{tag} *" if tag in unseen else tag]
        cells += [f"{item['loss']:.4f}", f"{item['bits_per_byte']:.4f}", f"{item['perplexity']:.4g}"]
        cells.append(f"{item['bytes'] / 1000:.0f}")
        if base:
            cells.append(f"{item['relative']:.3f}")
        if cloze:
            low, high = item["cloze"]["interval"]
            cells += [
                f"{item['cloze']['acc_norm']:.3f}",
                f"{low:.3f}-{high:.3f}",
                f"{item['cloze']['acc']:.3f}",
            ]
        table.add_row(*cells)
    console.print(table)
    if unseen:
        console.print("* unseen: the run did not train on it")
    if base:
        documents = found["documents"]
        console.print(
            f"text {found['text']}: {documents['scored']} of the {documents['common']} documents that every language "
            f"has; vs {base}: nats of the same documents, in units of {base}'s (bits per byte depend on the script)"
        )
    if cloze:
        console.print(
            f"cloze: the true continuation among four, {cloze['items']} items, chance {cloze['chance']:.2f}; by "
            "log-probability per character, raw: by its sum"
        )
        if cloze["length_ratio"] > RATIOS[0]:
            console.print(
                f"note: fewer than {FEWEST} items have choices alike in length in every language: the longest is up to "
                f"{cloze['length_ratio']:.1f} times the shortest, so length alone may decide"
            )
    for tag, item in found["languages"].items():
        if sample := item.get("sample"):
            console.print(f"{tag}: {_flat(sample['prompt'])} >>> {_flat(sample['text'])}", markup=False)


def show_tasks(console: Console, tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """What lm-eval measured on tasks asked for by name, and on the members of a group."""
    table = Table(title="lm-evaluation-harness")
    for name in ("task", "metric", "value", "stderr", "items", "shots"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for name, item in tasks.items():
        for metric, value in item["metrics"].items():
            error = item["stderr"].get(metric)
            cells = [f"{value:.4f}", "" if error is None else f"{error:.4f}"]
            cells += ["" if item[key] is None else str(item[key]) for key in ("items", "shots")]
            table.add_row(name, metric, *cells)
    console.print(table)


def show_harness(console: Console, found: Mapping[str, Any]) -> None:
    """Our cloze beside lm-eval's."""
    table = Table(title="cloze, ours and lm-evaluation-harness")
    for name in ("", "acc", "lm-eval", "acc_norm", "lm-eval"):
        table.add_column(name, justify="left" if not name else "right")
    for tag, item in found["languages"].items():
        ours, theirs = item["cloze"], item["lm_eval"]
        cells = [f"{value:.4f}" for name in ("acc", "acc_norm") for value in (ours[name], theirs[name])]
        table.add_row(tag, *cells)
    console.print(table)


def show_comparison(console: Console, found: Comparison) -> None:
    """Differences to the reference, method by method."""
    for name, rows in found.differences.items():
        table = Table(title=f"{name} minus {found.reference}: bits per byte, {_pairs(found, name)}")
        for head in ("", found.reference, "difference", "95 % (bootstrap)"):
            table.add_column(head, justify="left" if not head else "right")
        for what, item in rows.items():
            table.add_row(what, f"{item.base:.4f}", f"{item.mean:+.4f}", _interval(item))
        console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)


def _interval(item: Difference) -> str:
    return "one pair" if item.pairs < 2 else f"{item.low:+.4f} to {item.high:+.4f}"


def _pairs(found: Comparison, name: str) -> str:
    count = next(iter(found.differences[name].values())).pairs
    return f"{count} pair{'s' * (count != 1)} by seed"


def _flat(text: str) -> str:
    return " ".join(text.split())
