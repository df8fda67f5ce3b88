"""Build one language and split: blocks to tokens on disk, with a journal to go on from."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.data.corpus import Entry, FileSum, Part, entry_from_json
from megatron_moo.data.encode import Encoded, Job
from megatron_moo.data.external import check_external
from megatron_moo.data.indexed import IndexedWriter, bin_path, checksums, idx_path, token_dtype
from megatron_moo.data.manifest import Reading
from megatron_moo.data.pool import EncodePool
from megatron_moo.data.sources import Block, read_blocks
from megatron_moo.data.tokenizers import Tokenizer
from megatron_moo.errors import MooError

COMMIT_SECONDS = 5.0
_LISTED = 100


@dataclass(frozen=True)
class SplitTask:
    """One language and split of a build; ``files`` are read and tokenised, ``external`` prefixes used in
    place."""

    root: Path
    tag: str
    split: str
    files: tuple[Path, ...]
    external: tuple[Path, ...]
    reading: Reading
    sft: Mapping[str, Any] | None
    input_bytes: int

    @property
    def prefix(self) -> str:
        """Relative prefix of the built pair."""
        return f"{self.tag}/{self.split}"


@dataclass
class _Counts:
    tokens: int = 0
    bytes: int = 0
    characters: int = 0
    unknown: int = 0
    empty: int = 0
    max_token: int = -1
    skipped_count: int = 0
    skipped: list[str] = field(default_factory=list)
    sft: dict[str, int] = field(default_factory=dict)

    def add(self, encoded: Encoded) -> None:
        self.tokens += len(encoded.tokens)
        self.bytes += encoded.bytes
        self.characters += encoded.characters
        self.unknown += encoded.unknown
        self.empty += encoded.empty
        if len(encoded.tokens):
            self.max_token = max(self.max_token, int(encoded.tokens.max()))
        for key, value in encoded.sft.items():
            self.sft[key] = self.sft.get(key, 0) + value
        for fault in encoded.faults:
            self.skipped_count += 1
            if len(self.skipped) < _LISTED:
                self.skipped.append(str(fault))


def build_split(
    task: SplitTask,
    tokenizer: Tokenizer,
    pool: EncodePool,
    progress: Callable[[str, str, int, int], None] | None = None,
) -> Entry:
    """Build, or go on building, one split; returns what the corpus records of it.

    Raises:
        MooError: a bad record beyond the skip budget (file, line, offset), an empty language, damaged
            external files.
    """
    done = task.root / f"{task.prefix}.done.journal"
    if done.is_file():
        return entry_from_json(json.loads(done.read_text()))
    (task.root / task.tag).mkdir(exist_ok=True)
    parts: list[Part] = []
    counts = _Counts()
    documents = 0
    if task.files:
        documents = _tokenise(task, tokenizer, pool, counts, progress)
        parts.append(_sum_part(task.root, task.prefix, task.prefix))
    for number, source in enumerate(task.external):
        found = check_external(source, tokenizer, need_modes=task.sft is not None)
        counts.tokens += found.tokens
        counts.bytes += found.bytes
        counts.characters += found.characters
        counts.unknown += found.unknown
        counts.max_token = max(counts.max_token, found.max_token)
        documents += found.documents
        parts.append(_sum_part(task.root, str(source.absolute()), f"{task.prefix}.external{number}"))
    if counts.tokens == 0:
        where = str((task.files + task.external)[0])
        what = f"language {task.tag!r} has no {task.split} text"
        raise MooError(what, where, "give it text or take it out of the manifest")
    fields = {key: value for key, value in vars(counts).items() if key != "skipped"}
    entry = Entry(
        tag=task.tag,
        split=task.split,
        parts=tuple(parts),
        documents=documents,
        skipped=tuple(counts.skipped),
        **fields,
    )
    _write(done, asdict(entry))
    return entry


def _tokenise(
    task: SplitTask,
    tokenizer: Tokenizer,
    pool: EncodePool,
    counts: _Counts,
    progress: Callable[..., None] | None,
) -> int:
    journal = task.root / f"{task.prefix}.journal"
    state: dict[str, Any] = (
        json.loads(journal.read_text()) if journal.is_file() else {"blocks": 0, "writer": None}
    )
    for key, value in state.get("counts", {}).items():
        setattr(counts, key, value)
    size = tokenizer.vocab_size
    writer = IndexedWriter(task.root / task.prefix, token_dtype(size), state["writer"], size)
    blocks, last = int(state["blocks"]), time.monotonic()
    sizes = [file.stat().st_size for file in task.files]
    before = {file: sum(sizes[:i]) for i, file in enumerate(task.files)}
    try:
        for block, encoded in pool.map(_blocks(task, blocks), Job(task.reading, task.sft)):
            counts.add(encoded)
            _check_budget(task, counts, encoded)
            writer.add(encoded.tokens, encoded.lengths, encoded.counts, encoded.modes)
            blocks += 1
            if time.monotonic() - last > COMMIT_SECONDS:
                _write(journal, {"blocks": blocks, "writer": writer.commit(), "counts": vars(counts)})
                last = time.monotonic()
            if progress is not None:
                progress(task.tag, task.split, before[block.path] + block.done, task.input_bytes)
        writer.finish()
    finally:
        writer.close()
    return writer.documents


def _blocks(task: SplitTask, skip: int) -> Iterator[Block]:
    number = 0
    for file in task.files:
        for block in read_blocks(file, task.reading, conversations=task.sft is not None):
            if number >= skip:
                yield block
            number += 1


def _check_budget(task: SplitTask, counts: _Counts, encoded: Encoded) -> None:
    budget = task.reading.skip_budget
    if counts.skipped_count <= budget:
        return
    fault = encoded.faults[budget - (counts.skipped_count - len(encoded.faults))]
    more = f" (the first {budget} bad records were skipped)" if budget else ""
    raise MooError(f"{fault.reason}, offset {fault.offset}{more}", f"{fault.path}:{fault.line}",
                   "repair it, or allow some with reading.skip_budget")  # fmt: skip


def _sum_part(root: Path, prefix: str, name: str) -> Part:
    data, index = bin_path(root / prefix), idx_path(root / prefix)
    bin_digest, bin_sums = checksums(data)
    idx_digest, idx_sums = checksums(index)
    raw = np.concatenate([bin_sums, idx_sums]).astype("<u4").tobytes()
    crc = root / f"{name}.crc"
    crc.write_bytes(raw)
    return Part(
        prefix=prefix,
        bin=FileSum(data.stat().st_size, bin_digest),
        idx=FileSum(index.stat().st_size, idx_digest),
        crc=f"{name}.crc",
        crc_sha256=hashlib.sha256(raw).hexdigest(),
    )


def _write(path: Path, value: Any) -> None:
    """Write a journal so that a crash leaves the old one or the new one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
