"""Reading sources in blocks of bounded size: text, JSONL (.gz, .zst), Parquet, Hugging Face dataset folders.

The parent process only cuts; parsing happens in the workers (``records.py``). A block holds whole records
and knows its
file, first line and byte offset (in the decompressed stream), so that a bad record is named exactly, and a
resumed build
skips finished blocks without parsing them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_moo.data.arrow import pack, record_batches
from megatron_moo.data.manifest import Reading
from megatron_moo.data.zstd import ZstdReader
from megatron_moo.errors import MooError

BLOCK_BYTES = 1 << 20
CUTTING = 2  # raised when blocks are cut otherwise: an interrupted build counts them
_PLAIN = (".txt", ".text", ".md")
_LINES = (".jsonl", ".ndjson", ".json")
_PACKED = (".gz", ".zst")


@dataclass(frozen=True)
class Block:
    """Whole records of one file.

    Attributes:
        kind: ``jsonl``, ``line``, ``paragraph``, ``file``, ``parquet`` or ``arrow``.
        path: the file.
        line: number of the first line (from 1); for tables the first row.
        offset: byte offset of ``data`` in the (decompressed) file.
        data: the bytes; of tables an Arrow stream of some rows.
        done: bytes of the file, as it lies on disk, that were read up to here.
        overlong: set when the block stands for one record that is too long to hold: its length in bytes.
    """

    kind: str
    path: Path
    line: int = 1
    offset: int = 0
    data: bytes = b""
    done: int = 0
    overlong: int = 0


def is_indexed(path: Path) -> bool:
    """Whether a source is a .bin/.idx prefix (one of the two is enough to mean it)."""
    return not path.exists() and (Path(f"{path}.idx").exists() or Path(f"{path}.bin").exists())


def kind_of(path: Path, reading: Reading) -> str:
    """The kind of the blocks of a file, by its name.

    Raises:
        MooError: a name that is none of the known ones.
    """
    suffixes = [s.lower() for s in path.suffixes]
    while suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    last = suffixes[-1] if suffixes else ""
    if last in _LINES:
        return "jsonl"
    if last == ".parquet":
        return "parquet"
    if last == ".arrow":
        return "arrow"
    if last in _PLAIN:
        return reading.documents
    raise MooError(
        f"unknown kind of source {last or 'without a suffix'!r}",
        str(path),
        "use .txt, .jsonl (also .gz, .zst), .parquet, a dataset folder or a .bin/.idx prefix",
    )


def expand(path: Path, reading: Reading) -> list[Path]:
    """The files of a source: itself, or those of a folder (a saved Hugging Face dataset, or loose data
    files)."""
    if not path.is_dir():
        return [path]
    if (path / "dataset_dict.json").is_file():
        splits = _read_json(path / "dataset_dict.json").get("splits", [])
        if reading.split not in splits:
            todo = f"give reading.split, one of {', '.join(map(str, splits))}"
            raise MooError(f"the dataset has several splits and {reading.split!r} is none", str(path), todo)
        return expand(path / str(reading.split), reading)
    if (path / "state.json").is_file():
        state = _read_json(path / "state.json")
        if state.get("_indices_files"):
            raise MooError(
                "the dataset was filtered or shuffled by an index",
                str(path),
                "call flatten_indices() and save again",
            )
        return [path / item["filename"] for item in state.get("_data_files", [])]
    known = [*_PLAIN, *_LINES, ".parquet"]
    files = sorted(f for f in path.rglob("*") if f.is_file() and any(s in known for s in f.suffixes))
    if reading.split is not None:
        files = [f for f in files if reading.split in f.stem or reading.split in f.parts]
    if not files:
        raise MooError("no data files in the folder", str(path), "put .jsonl, .parquet or .txt files there")
    return files


def read_blocks(path: Path, reading: Reading, conversations: bool = False) -> Iterator[Block]:
    """Blocks of one file, in order; ``conversations`` says which columns of a table are wanted.

    Raises:
        MooError: a file that cannot be opened, decompressed or understood.
    """
    kind = kind_of(path, reading)
    if kind in ("parquet", "arrow"):
        yield from _table_blocks(path, kind, reading, conversations)
        return
    try:
        with path.open("rb") as file:
            stream = _open(file, path.suffix)
            if kind == "file":
                yield _whole(path, stream, reading.max_line_bytes)
            else:
                yield from _cut(path, kind, stream, reading.max_line_bytes, file.tell)
    except (OSError, EOFError, zlib.error) as error:
        raise MooError(
            f"cannot be read ({error})", str(path), "the file is damaged or truncated: get it again"
        ) from error


def _open(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)  # type: ignore[return-value]
    return ZstdReader(file) if suffix == ".zst" else file  # type: ignore[return-value]


def _whole(path: Path, stream: BinaryIO, limit: int) -> Block:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise MooError(
            f"one document of more than {limit} bytes", str(path), "use documents: paragraph or line"
        )
    return Block("file", path, data=data, done=path.stat().st_size)


def _cut(path: Path, kind: str, stream: BinaryIO, limit: int, done: Callable[[], int]) -> Iterator[Block]:
    pending, line, offset = bytearray(), 1, 0
    while True:
        data = stream.read(BLOCK_BYTES)
        searched = len(pending)
        pending += data
        at = _record_end(pending, kind, max(0, searched - 2)) if data else len(pending)
        if data and not at:
            if len(pending) <= limit:
                continue
            if kind != "paragraph":
                length, rest, ended = _skip_line(stream, len(pending))
                yield Block(kind, path, line, offset, overlong=length, done=done())
                line, offset, pending = line + 1, offset + length + ended, bytearray(rest)
                continue
            # Prose without blank lines: cut at a line, or at a character; a document becomes two, nothing is
            # lost.
            at = pending.rfind(b"\n") + 1 or _character_end(pending)
        block = bytes(pending[:at])
        del pending[:at]
        if block:
            yield Block(kind, path, line, offset, block, done=done())
        line, offset = line + block.count(b"\n"), offset + len(block)
        if not data:
            return


def _record_end(data: bytearray, kind: str, start: int) -> int:
    """Where the last complete record ends, 0 when none does; what stands before ``start`` was searched before."""
    if kind == "paragraph":
        unix, windows = data.rfind(b"\n\n", start), data.rfind(b"\n\r\n", start)
        return max(unix + 2 if unix >= 0 else 0, windows + 3 if windows >= 0 else 0)
    return data.rfind(b"\n", start) + 1


def _skip_line(stream: BinaryIO, length: int) -> tuple[int, bytes, int]:
    """Drop the rest of a line; its length without newline, what was read beyond it, and 1 if it had a
    newline."""
    while data := stream.read(BLOCK_BYTES):
        at = data.find(b"\n")
        if at >= 0:
            return length + at, data[at + 1 :], 1
        length += len(data)
    return length, b"", 0


def _character_end(data: bytearray) -> int:
    at = len(data) - 1
    while at > 0 and data[at] & 0xC0 == 0x80:
        at -= 1
    return at or len(data)


def _table_blocks(path: Path, kind: str, reading: Reading, conversations: bool) -> Iterator[Block]:
    key = None if conversations else reading.text_key
    for row, done, batch in record_batches(path, kind, key, BLOCK_BYTES):
        if batch.nbytes > max(reading.max_line_bytes, BLOCK_BYTES):  # one row, and too long to pass on
            yield Block(kind, path, row, done=done, overlong=batch.nbytes)
        else:
            yield Block(kind, path, row, done=done, data=pack(batch))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise MooError(f"cannot be read ({error})", str(path), "save the dataset again") from error
