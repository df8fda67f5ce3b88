"""Parquet files and Arrow streams in blocks of about a megabyte: only the columns that are needed, one pass.

A block carries its rows as an Arrow stream, so the workers read no file and memory stays bounded however large a row
group is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError

_CONVERSATION = ("messages", "prompt", "completion")
_MOST_ROWS = 1 << 16


def record_batches(
    path: Path, kind: str, text_key: str | None, block_bytes: int
) -> Iterator[tuple[int, int, Any]]:
    """(first row from 1, bytes of the file read so far, batch) in order; a batch holds about ``block_bytes``, or one
    row.

    Args:
        path, kind: the file; ``parquet`` or ``arrow``.
        text_key: the column; None: those of conversations.
        block_bytes: how large a batch may be.

    Raises:
        MooError: a file that cannot be read, or without the column.
    """
    import pyarrow as pa

    row = 1
    try:
        batches = _parquet(path, text_key, block_bytes) if kind == "parquet" else _stream(path, text_key)
        for done, whole in batches:
            for part in _parts(whole, block_bytes):
                yield row, done, part
                row += part.num_rows
    except (pa.ArrowException, OSError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        what = f"cannot be read from row {row} on ({first})"
        raise MooError(what, str(path), "the file is damaged: get it again") from error


def pack(batch: Any) -> bytes:
    """A batch as an Arrow stream."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)
    return bytes(sink.getvalue())


def unpack(data: bytes) -> Any:
    """The batch of ``pack``."""
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_next_batch()


def _parquet(path: Path, text_key: str | None, block_bytes: int) -> Iterator[tuple[int, Any]]:
    import pyarrow.parquet as pq

    # With a buffer size a column chunk is streamed, not read at once.
    with pq.ParquetFile(path, buffer_size=1 << 16) as file:
        columns = _columns(path, file.schema_arrow.names, text_key)
        meta = file.metadata
        data = sum(meta.row_group(group).total_byte_size for group in range(meta.num_row_groups))
        most = max(1, min(_MOST_ROWS, block_bytes * meta.num_rows // max(1, data)))
        size, rows = path.stat().st_size, 0
        for batch in file.iter_batches(batch_size=most, columns=columns, use_threads=False):
            rows += batch.num_rows
            yield size * rows // meta.num_rows, batch


def _stream(path: Path, text_key: str | None) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_stream(source)
        columns = _columns(path, reader.schema.names, text_key)
        for batch in reader:
            yield source.tell(), batch.select(columns)


def _columns(path: Path, names: list[str], text_key: str | None) -> list[str]:
    known = ", ".join(names)
    if text_key is None:
        found = [name for name in _CONVERSATION if name in names]
        if not found:
            raise MooError("no column `messages`", str(path), f"conversations need it; there are {known}")
        return found
    if text_key not in names:
        raise MooError(f"no column {text_key!r}", str(path), f"set reading.text_key to one of {known}")
    return [text_key]


def _parts(batch: Any, block_bytes: int) -> Iterator[Any]:
    """Halves of halves, until each is small or one row."""
    if batch.num_rows <= 1 or batch.nbytes <= block_bytes:
        if batch.num_rows:
            yield batch
        return
    half = batch.num_rows // 2
    yield from _parts(batch.slice(0, half), block_bytes)
    yield from _parts(batch.slice(half), block_bytes)
