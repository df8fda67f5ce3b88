"""From a block of bytes to records: parsing where every fault has a file, a line and an offset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_moo.data.manifest import Reading
from megatron_moo.data.sources import Block
from megatron_moo.errors import MooError

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Fault:
    """A record that cannot be used."""

    path: str
    line: int
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.reason} (offset {self.offset})"


def texts(block: Block, reading: Reading) -> Iterator[str | Fault]:
    """The documents of a block, or a Fault in the place of each bad one; empty documents come as ""."""
    for item in _values(block, reading, reading.text_key):
        if isinstance(item, Fault):
            yield item
            continue
        line, offset, value = item
        reason = text_fault(value)
        yield value if reason is None else Fault(str(block.path), line, offset, reason)


def rows(block: Block, reading: Reading) -> Iterator[tuple[int, int, Any] | Fault]:
    """(line, offset, JSON object) of each record of a block: for conversations."""
    if block.kind not in ("jsonl", "parquet", "arrow"):
        raise MooError("plain text holds no conversations", str(block.path), "use JSONL with `messages`")
    yield from _values(block, reading, None)


def text_fault(value: Any) -> str | None:
    """Why a value is no usable text, or None."""
    if not isinstance(value, str):
        return f"the text is {type(value).__name__}, not a string"
    if "\x00" in value:
        return "a NUL character"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"a lone surrogate at character {error.start}"
    return None


def _values(block: Block, reading: Reading, key: str | None) -> Iterator[tuple[int, int, Any] | Fault]:
    if block.overlong:
        reason = (
            f"a record of {block.overlong} bytes, more than reading.max_line_bytes = {reading.max_line_bytes}"
        )
        yield Fault(str(block.path), block.line, block.offset, reason)
    elif block.kind in ("parquet", "arrow"):
        yield from _table_values(block, key)
    elif block.kind == "jsonl":
        yield from _json_values(block, key)
    else:
        yield from _plain_values(block)


def _lines(block: Block) -> Iterator[tuple[int, int, bytes]]:
    at = len(_BOM) if block.offset == 0 and block.data.startswith(_BOM) else 0
    line = block.line
    while at < len(block.data):
        end = block.data.find(b"\n", at)
        end = len(block.data) if end < 0 else end
        yield line, block.offset + at, block.data[at:end]
        at, line = end + 1, line + 1


def _json_values(block: Block, key: str | None) -> Iterator[tuple[int, int, Any] | Fault]:
    for line, offset, raw in _lines(block):
        if not raw.strip():
            continue
        value, fault = _parse(raw, key)
        if fault is None:
            yield line, offset, value
        else:
            yield Fault(str(block.path), line, offset + fault[0], fault[1])


def _parse(raw: bytes, key: str | None) -> tuple[Any, tuple[int, str] | None]:
    try:
        value = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return None, (error.start, f"broken UTF-8, byte 0x{raw[error.start]:02x}")
    except json.JSONDecodeError as error:
        return None, (len(error.doc[: error.pos].encode("utf-8")), f"not JSON: {error.msg}")
    except RecursionError:
        return None, (0, "nested too deeply")
    except ValueError as error:
        return None, (0, f"not usable JSON: {str(error)[:80]}")
    if not isinstance(value, dict):
        return None, (0, f"a JSON {type(value).__name__}, not an object")
    if key is None:
        return value, None
    if key not in value:
        return None, (0, f"no key {key!r}")
    return value[key], None


def _plain_values(block: Block) -> Iterator[tuple[int, int, Any] | Fault]:
    for line, offset, raw in _pieces(block):
        try:
            yield line, offset, raw.decode("utf-8").replace("\r\n", "\n").strip("\r\n")
        except UnicodeDecodeError as error:
            inside = raw[: error.start].count(b"\n")
            reason = f"broken UTF-8, byte 0x{raw[error.start]:02x}"
            yield Fault(str(block.path), line + inside, offset + error.start, reason)


def _pieces(block: Block) -> Iterator[tuple[int, int, bytes]]:
    if block.kind == "line":
        yield from _lines(block)
        return
    if block.kind == "file":
        skip = len(_BOM) if block.data.startswith(_BOM) else 0
        yield block.line, block.offset + skip, block.data[skip:]
        return
    held: list[bytes] = []
    first, start = block.line, block.offset
    for line, offset, raw in _lines(block):
        if raw.strip():
            if not held:
                first, start = line, offset
            held.append(raw)
        elif held:
            yield first, start, b"\n".join(held)
            held = []
    if held:
        yield first, start, b"\n".join(held)


def _table_values(block: Block, key: str | None) -> Iterator[tuple[int, int, Any] | Fault]:
    import pyarrow as pa

    try:
        table = _table(block)
    except (pa.ArrowException, OSError) as error:
        what = f"row group {block.group} cannot be read ({str(error).splitlines()[0][:150]})"
        raise MooError(what, str(block.path), "the file is damaged: get it again") from error
    if key is not None and key not in table.column_names:
        known = ", ".join(table.column_names)
        raise MooError(f"no column {key!r}", str(block.path), f"set reading.text_key to one of {known}")
    values = table.column(key).to_pylist() if key is not None else table.to_pylist()
    for i, value in enumerate(values):
        yield block.line + i, 0, value


def _table(block: Block) -> Any:
    import pyarrow as pa

    if block.kind == "parquet":
        import pyarrow.parquet as pq

        return pq.ParquetFile(block.path).read_row_group(block.group)
    with pa.memory_map(str(block.path)) as source:
        for group, batch in enumerate(pa.ipc.open_stream(source)):
            if group == block.group:
                return pa.Table.from_batches([batch])
    raise MooError(f"no record batch {block.group}", str(block.path), "the file changed while it was read")
