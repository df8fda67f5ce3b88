"""From a block of bytes to records: parsing where every fault has a file, a line and an offset."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from megatron_moo.data.arrow import unpack
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
        reason = _too_long(block.overlong, reading.max_line_bytes)
        yield Fault(str(block.path), block.line, block.offset, reason)
    elif block.kind in ("parquet", "arrow"):
        yield from _table_values(block, key, reading.max_line_bytes)
    elif block.kind == "jsonl":
        yield from _json_values(block, key, reading.max_line_bytes)
    else:
        yield from _plain_values(block, reading.max_line_bytes)


def _too_long(size: int, limit: int) -> str:
    return f"a record of {size} bytes, more than reading.max_line_bytes = {limit}"


def _lines(block: Block) -> Iterator[tuple[int, int, bytes]]:
    at = len(_BOM) if block.offset == 0 and block.data.startswith(_BOM) else 0
    line = block.line
    while at < len(block.data):
        end = block.data.find(b"\n", at)
        end = len(block.data) if end < 0 else end
        yield line, block.offset + at, block.data[at:end]
        at, line = end + 1, line + 1


def _json_values(block: Block, key: str | None, limit: int) -> Iterator[tuple[int, int, Any] | Fault]:
    for line, offset, raw in _lines(block):
        if not raw.strip():
            continue
        value, fault = _parse(raw, key) if len(raw) <= limit else (None, (0, _too_long(len(raw), limit)))
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


def _plain_values(block: Block, limit: int) -> Iterator[tuple[int, int, Any] | Fault]:
    for line, offset, raw in _pieces(block):
        if block.kind == "line" and len(raw) > limit:
            yield Fault(str(block.path), line, offset, _too_long(len(raw), limit))
            continue
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


def _table_values(block: Block, key: str | None, limit: int) -> Iterator[tuple[int, int, Any] | Fault]:
    batch = unpack(block.data)
    try:
        values = batch.column(key).to_pylist() if key is not None else batch.to_pylist()
    except UnicodeDecodeError:
        values = [_row(batch, key, i) for i in range(batch.num_rows)]
    long = batch.nbytes > limit
    for i, value in enumerate(values):
        size = batch.slice(i, 1).nbytes if long else 0
        if size > limit:
            yield Fault(str(block.path), block.line + i, 0, _too_long(size, limit))
        elif isinstance(value, UnicodeDecodeError):
            reason = f"broken UTF-8, byte 0x{value.object[value.start]:02x}"
            yield Fault(str(block.path), block.line + i, value.start, reason)
        else:
            yield block.line + i, 0, value


def _row(batch: Any, key: str | None, number: int) -> Any:
    """A row's value, or the error in its place."""
    try:
        return batch.column(key)[number].as_py() if key is not None else batch.slice(number, 1).to_pylist()[0]
    except UnicodeDecodeError as error:
        return error
