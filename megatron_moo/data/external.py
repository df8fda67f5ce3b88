"""A user's own .bin/.idx prefix as a source: used in place, after a full reading."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_moo.data.corpus import BUILD_FILE, read_record
from megatron_moo.data.indexed import IndexedFile, bin_path, open_indexed
from megatron_moo.data.tokenizers import Tokenizer
from megatron_moo.errors import MooError

_BATCH = 1 << 18


@dataclass(frozen=True)
class ExternalCounts:
    """What reading the tokens showed; bytes and characters are those of the decoded text."""

    tokens: int
    documents: int
    bytes: int
    characters: int
    unknown: int
    max_token: int


def check_external(prefix: Path, tokenizer: Tokenizer, need_modes: bool = False) -> ExternalCounts:
    """Check a pair's structure, its tokenizer where one is recorded, and every token.

    Raises:
        MooError: damage, another tokenizer, ids outside the vocabulary, no loss modes for fine-tuning; with
            file and offset.
    """
    file = open_indexed(prefix)
    _check_tokenizer(prefix, tokenizer)
    if need_modes and file.modes is None:
        raise MooError(
            "has no loss modes", str(prefix), "fine-tuning needs a pair that was built from conversations"
        )
    text_bytes = characters = unknown = 0
    top = -1
    for start, tokens in _batches(file):
        bad = np.flatnonzero((tokens < 0) | (tokens >= tokenizer.vocab_size))
        if len(bad):
            offset = (start + int(bad[0])) * file.tokens.itemsize
            size = tokenizer.vocab_size
            what = f"token {int(tokens[bad[0]])} is outside the vocabulary of {size}, offset {offset}"
            raise MooError(what, str(bin_path(prefix)), "it is damaged, or was made by another tokenizer")
        top = max(top, int(tokens.max()))
        if tokenizer.unknown is not None:
            unknown += int((tokens == tokenizer.unknown).sum())
        text = tokenizer.decode(tokens[tokens != tokenizer.eod].tolist())
        text_bytes, characters = text_bytes + len(text.encode("utf-8", "replace")), characters + len(text)
    return ExternalCounts(len(file.tokens), file.documents, text_bytes, characters, unknown, top)


def _batches(file: IndexedFile) -> Iterator[tuple[int, np.ndarray]]:
    """(start, tokens): batches that end at sequence ends, so decoding never cuts a character of a sequence
    in two."""
    ends = np.cumsum(file.lengths, dtype=np.int64)
    start = 0
    while start < len(file.tokens):
        at = int(np.searchsorted(ends, start + _BATCH, side="right"))
        end = int(ends[at - 1]) if at else 0
        if end <= start:
            end = min(start + _BATCH, len(file.tokens))
        yield start, np.asarray(file.tokens[start:end], np.int64)
        start = end


def _check_tokenizer(prefix: Path, tokenizer: Tokenizer) -> None:
    for name, found in _recorded(prefix):
        if found != tokenizer.hash:
            own = f"{tokenizer.name} ({tokenizer.hash[:12]})"
            what = f"was made by tokenizer {name} ({found[:12]}), not by {own}"
            raise MooError(what, str(prefix), "use that tokenizer, or build from the text")


def _recorded(prefix: Path) -> list[tuple[str, str]]:
    """(name, hash) of the tokenizer that a sidecar or a corpus around the pair records."""
    side = Path(f"{prefix}.tokenizer.json")
    if side.is_file():
        try:
            record = json.loads(side.read_text(encoding="utf-8"))
            return [(str(record["name"]), str(record["hash"]))]
        except (ValueError, KeyError, TypeError) as error:
            raise MooError(f"is damaged ({error})", str(side), "remove it or build again") from error
    if (prefix.parent.parent / BUILD_FILE).is_file():
        record = read_record(prefix.parent.parent)["tokenizer"]
        return [(record["name"], record["hash"])]
    return []
