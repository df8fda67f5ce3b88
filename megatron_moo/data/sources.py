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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from megatron_moo.data.manifest import Reading
from megatron_moo.errors import MooError

BLOCK_BYTES = 1 << 20
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
        data: the bytes; empty for tables, which the worker reads itself.
        group: row group or record batch of a table.
        overlong: set when the block stands for one record that is too long to hold: its length in bytes.
    """

    kind: str
    path: Path
    line: int = 1
    offset: int = 0
    data: bytes = b""
    group: int = -1
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


def read_blocks(path: Path, reading: Reading) -> Iterator[Block]:
    """Blocks of one file, in order.

    Raises:
        MooError: a file that cannot be opened, decompressed or understood.
    """
    kind = kind_of(path, reading)
    if kind in ("parquet", "arrow"):
        yield from _table_blocks(path, kind)
        return
    try:
        with _open(path) as stream:
            if kind == "file":
                yield _whole(path, stream, reading.max_line_bytes)
            else:
                yield from _cut(path, kind, stream, reading.max_line_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise MooError(
            f"cannot be read ({error})", str(path), "the file is damaged or truncated: get it again"
        ) from error


def _open(path: Path) -> BinaryIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.suffix == ".zst":
        import zstandard

        return _Zstd(path, zstandard)  # type: ignore[return-value]
    return path.open("rb")


class _Zstd:
    """A .zst file that ends early is an error: the library's reader would take it for the end of the data."""

    def __init__(self, path: Path, zstandard: Any) -> None:
        self._file = path.open("rb")
        self._error = zstandard.ZstdError
        self._make = zstandard.ZstdDecompressor().decompressobj
        self._frame: Any = None
        self._rest = b""

    def __enter__(self) -> _Zstd:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, count: int) -> bytes:
        while len(self._rest) < count:
            data = self._file.read(1 << 16)
            if not data:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is not complete")
                break
            self._feed(data)
        result, self._rest = self._rest[:count], self._rest[count:]
        return result

    def _feed(self, data: bytes) -> None:
        while data:
            self._frame = self._frame or self._make()
            try:
                self._rest += self._frame.decompress(data)
            except self._error as error:
                raise OSError(f"zstd: {error}") from error
            data = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None


def _whole(path: Path, stream: BinaryIO, limit: int) -> Block:
    data = stream.read(limit + 1)
    if len(data) > limit:
        raise MooError(
            f"one document of more than {limit} bytes", str(path), "use documents: paragraph or line"
        )
    return Block("file", path, data=data)


def _cut(path: Path, kind: str, stream: BinaryIO, limit: int) -> Iterator[Block]:
    pending, line, offset = b"", 1, 0
    while True:
        data = stream.read(BLOCK_BYTES)
        pending += data
        at = _record_end(pending, kind) if data else len(pending)
        if not data or at:
            block, pending = pending[:at], pending[at:]
        elif len(pending) <= limit:
            continue
        elif kind == "paragraph":
            # Prose without blank lines: cut at a line, or at a character; a document becomes two, nothing is
            # lost.
            at = pending.rfind(b"\n") + 1 or _character_end(pending)
            block, pending = pending[:at], pending[at:]
        else:
            length, pending, ended = _skip_line(stream, len(pending))
            yield Block(kind, path, line, offset, overlong=length)
            line, offset = line + 1, offset + length + ended
            continue
        if block:
            yield Block(kind, path, line, offset, block)
        line, offset = line + block.count(b"\n"), offset + len(block)
        if not data:
            return


def _record_end(data: bytes, kind: str) -> int:
    """Where the last complete record ends, 0 when none does."""
    if kind == "paragraph":
        unix, windows = data.rfind(b"\n\n"), data.rfind(b"\n\r\n")
        return max(unix + 2 if unix >= 0 else 0, windows + 3 if windows >= 0 else 0)
    return data.rfind(b"\n") + 1


def _skip_line(stream: BinaryIO, length: int) -> tuple[int, bytes, int]:
    """Drop the rest of a line; its length without newline, what was read beyond it, and 1 if it had a
    newline."""
    while data := stream.read(BLOCK_BYTES):
        at = data.find(b"\n")
        if at >= 0:
            return length + at, data[at + 1 :], 1
        length += len(data)
    return length, b"", 0


def _character_end(data: bytes) -> int:
    at = len(data) - 1
    while at > 0 and data[at] & 0xC0 == 0x80:
        at -= 1
    return at or len(data)


def _table_blocks(path: Path, kind: str) -> Iterator[Block]:
    import pyarrow as pa

    try:
        if kind == "parquet":
            import pyarrow.parquet as pq

            metadata = pq.ParquetFile(path).metadata
            row = 1
            for group in range(metadata.num_row_groups):
                yield Block(kind, path, line=row, group=group)
                row += metadata.row_group(group).num_rows
        else:
            with pa.memory_map(str(path)) as source:
                reader = pa.ipc.open_stream(source)
                row = 1
                for group, batch in enumerate(reader):
                    yield Block(kind, path, line=row, group=group)
                    row += batch.num_rows
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0][:200]
        raise MooError(f"cannot be read ({first})", str(path), "the file is damaged: get it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise MooError(f"cannot be read ({error})", str(path), "save the dataset again") from error
