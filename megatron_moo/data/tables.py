"""Tables of a corpus for the terminal."""

from __future__ import annotations

from rich.console import Console, RenderableType
from rich.table import Table

from megatron_moo.data.corpus import Corpus, Entry


def show(item: RenderableType) -> None:
    """Print to stdout; piped output is wide and has no colours."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(item)


def say(text: str) -> None:
    """Print one plain line to stdout."""
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def corpus_table(corpus: Corpus) -> Table:
    """Tokens, documents, fertility and unknown rate per language and split.

    Fertility is tokens per character and per byte of text, end-of-document ids left out.
    """
    title = f"{corpus.path.name}: {corpus.tokenizer_name}, {corpus.vocab_size} ids, {corpus.fingerprint[:12]}"
    table = Table(title=title, title_justify="left")
    table.add_column("language")
    table.add_column("split")
    for name in (
        "documents",
        "tokens",
        "bytes",
        "tokens/char",
        "tokens/byte",
        "unknown %",
        "skipped",
        "empty",
    ):
        table.add_column(name, justify="right")
    for entry in corpus.entries.values():
        table.add_row(*_row(entry))
    return table


def fertility(entry: Entry) -> tuple[float, float]:
    """(tokens per character, tokens per byte) of an entry's text; for conversations of what the assistant
    wrote."""
    text_tokens = entry.sft["loss_text_tokens"] if entry.sft else entry.tokens - entry.documents
    return text_tokens / max(1, entry.characters), text_tokens / max(1, entry.bytes)


def _row(entry: Entry) -> tuple[str, ...]:
    per_character, per_byte = fertility(entry)
    return (
        entry.tag,
        entry.split,
        f"{entry.documents:,}",
        f"{entry.tokens:,}",
        f"{entry.bytes:,}",
        f"{per_character:.3f}",
        f"{per_byte:.3f}",
        f"{100 * entry.unknown / max(1, entry.tokens):.3f}",
        str(entry.skipped_count),
        str(entry.empty),
    )
