"""The work of one process of the build: a block of bytes in, tokens and counts out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.data.manifest import Reading
from megatron_moo.data.records import Fault, texts
from megatron_moo.data.sources import Block
from megatron_moo.data.tokenizers import ByteTokenizer, Tokenizer, make_tokenizer
from megatron_moo.errors import MooError


@dataclass
class Encoded:
    """Tokens of whole documents, and what was counted on the way.

    ``lengths`` are tokens per sequence, ``counts`` sequences per document, ``modes`` 1 where a sequence
    counts in the loss
    (fine-tuning only). bytes and characters are of the text, without end-of-document ids.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    counts: np.ndarray
    modes: np.ndarray | None = None
    bytes: int = 0
    characters: int = 0
    unknown: int = 0
    empty: int = 0
    faults: list[Fault] = field(default_factory=list)
    sft: dict[str, int] = field(default_factory=dict)


def encode_block(block: Block, reading: Reading, tokenizer: Tokenizer) -> Encoded:
    """Parse and tokenise one block of running text; each document ends with the tokenizer's eod."""
    good: list[str] = []
    faults: list[Fault] = []
    empty = 0
    for item in texts(block, reading):
        if isinstance(item, Fault):
            faults.append(item)
        elif not item.strip():
            empty += 1
        else:
            good.append(item)
    result = encode_texts(good, tokenizer)
    result.faults, result.empty = faults, empty
    return result


def encode_texts(good: list[str], tokenizer: Tokenizer) -> Encoded:
    """Tokenise documents, each closed by eod."""
    if isinstance(tokenizer, ByteTokenizer):
        return _encode_bytes(good, tokenizer.eod)
    ids = tokenizer.encode_batch(good)
    lengths = np.fromiter((len(i) + 1 for i in ids), np.int32, len(ids))
    tokens = np.full(int(lengths.sum()), tokenizer.eod, np.int32)
    at = 0
    for one in ids:
        tokens[at : at + len(one)] = one
        at += len(one) + 1
    unknown = int((tokens == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0
    return Encoded(
        tokens,
        lengths,
        np.ones(len(ids), np.int32),
        bytes=sum(len(text.encode("utf-8")) for text in good),
        characters=sum(map(len, good)),
        unknown=unknown,
    )


def _encode_bytes(good: list[str], eod: int) -> Encoded:
    raw = [text.encode("utf-8") for text in good]
    lengths = np.fromiter((len(r) + 1 for r in raw), np.int32, len(raw))
    # \xff never occurs in UTF-8, so one join and one replacement do the work of a loop over documents.
    joined = np.frombuffer(b"\xff".join([*raw, b""]), np.uint8).astype(np.uint16)
    joined[np.cumsum(lengths) - 1] = eod
    ones = np.ones(len(raw), np.int32)
    return Encoded(joined, lengths, ones, bytes=sum(map(len, raw)), characters=sum(map(len, good)))


@dataclass(frozen=True)
class Job:
    """What a worker needs for one language, beside the block."""

    reading: Reading
    sft: Mapping[str, Any] | None = None


_TOKENIZER: Tokenizer | None = None


def start_worker(spec: Mapping[str, Any], base: str | None) -> None:
    """Process initialiser: the tokenizer is made once per process."""
    global _TOKENIZER
    _TOKENIZER = make_tokenizer(spec, Path(base) if base else None)


def run_job(block: Block, job: Job) -> Encoded:
    """Encode one block in a worker whose ``start_worker`` has run."""
    if _TOKENIZER is None:
        raise MooError("the worker has no tokenizer")
    return encode_with(block, job, _TOKENIZER)


def encode_with(block: Block, job: Job, tokenizer: Tokenizer) -> Encoded:
    """Encode one block: running text, or conversations when the job is a fine-tuning one."""
    if job.sft is None:
        return encode_block(block, job.reading, tokenizer)
    from megatron_moo.data.sft.encode import encode_conversations

    return encode_conversations(block, job.reading, tokenizer, job.sft)
