"""The safetensors side, read: names checked before any file is opened, headers before any tensor is read."""

from __future__ import annotations

import ctypes
import json
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_moo.errors import MooError
from megatron_moo.models.files import regular_file, small_bytes

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors")
_MAX_INDEX, _MAX_HEADER = 256 << 20, 100_000_000

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NAMES = {value: key for key, value in DTYPES.items()}
WEIGHTS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class Entry:
    """A tensor in a shard: its file, dtype, shape and, in a safetensors file, where its bytes start."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0


class Safetensors:
    """A folder of safetensors shards, opened as far as headers.

    Args:
        folder: the Hugging Face checkpoint.

    Raises:
        MooError: for shard names that are not plain file names in that folder, links, shards that are missing
            or
            listed twice, and headers that do not fit their file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files, weight_map = _shards(folder)
        self.entries: dict[str, Entry] = {}
        for file in files:
            for name, entry in read_header(file).items():
                if name in self.entries:
                    raise MooError(f"tensor {name!r} is also in {self.entries[name].file.name}", str(file))
                self.entries[name] = entry
        _check_map(weight_map, self.entries, folder / INDEX)
        self._open: tuple[Path, BufferedReader] | None = None

    def check(
        self, expected: dict[str, tuple[int, ...]], tied: Iterable[str] = (), extra: Iterable[str] = ()
    ) -> None:
        """Hold names, shapes and dtypes against what the config says.

        Args:
            expected: names and shapes that must be there.
            tied: names that may be there too because they repeat another tensor.
            extra: names of constants that may be there.

        Raises:
            MooError: naming file and tensor.
        """
        for name, shape in expected.items():
            entry = self.entries.get(name)
            if entry is None:
                raise MooError(f"tensor {name!r} is missing", str(self.folder))
            if entry.shape != shape:
                raise MooError(
                    f"tensor {name!r} is {list(entry.shape)}, the config says {list(shape)}", str(entry.file)
                )
            if entry.dtype not in WEIGHTS:
                raise MooError(f"tensor {name!r} is {entry.dtype}, expected floating point", str(entry.file))
        allowed = {*expected, *tied, *extra}
        for name, entry in self.entries.items():
            if name not in allowed and not name.endswith("rotary_emb.inv_freq"):
                raise MooError(f"tensor {name!r} belongs to nothing in this family", str(entry.file))

    def read(self, name: str, index: int | None = None) -> Tensor:
        """One tensor, or one entry of its first axis.

        Raises:
            MooError: when the shard cannot be read.
        """
        entry = self.entries[name]
        shape = entry.shape if index is None else entry.shape[1:]
        out = torch.empty(shape, dtype=entry.dtype)
        # Not through numpy: torch could no longer free such a tensor while somebody holds it (dist_write.py does).
        size = out.numel() * out.element_size()
        flat = memoryview(b"")
        if size:
            flat = memoryview((ctypes.c_char * size).from_address(out.data_ptr())).cast("B")
        try:
            # Read, not mapped: a mapped shard counts as this process's memory as far as it has been read.
            stream = self._stream(entry.file)
            stream.seek(entry.start + (index or 0) * len(flat))
            got = stream.readinto(flat) if len(flat) else 0
        except OSError as error:
            raise MooError(f"tensor {name!r} cannot be read ({error.strerror})", str(entry.file)) from None
        if got != len(flat):
            raise MooError(f"tensor {name!r} ends after {got} of {len(flat)} bytes", str(entry.file))
        return out

    def _stream(self, file: Path) -> BufferedReader:
        if self._open is None or self._open[0] != file:
            self.close()
            self._open = (file, file.open("rb"))
        return self._open[1]

    def close(self) -> None:
        """Let go of the open shard."""
        if self._open is not None:
            self._open[1].close()
        self._open = None


def read_header(file: Path) -> dict[str, Entry]:
    """Names, dtypes and shapes of a shard, held against the size of the file.

    Raises:
        MooError: naming file and tensor.
    """
    where = str(file)
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else -1
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise MooError(f"says that its header has {length} bytes, the file has {size}", where)
            header = json.loads(stream.read(length).decode("utf-8"))
    except OSError as error:
        raise MooError(f"cannot be read ({error.strerror})", where) from None
    except (ValueError, RecursionError) as error:
        raise MooError(f"has a malformed header ({error})", where) from None
    if not isinstance(header, dict):
        raise MooError("has a header that is not a mapping", where)
    header.pop("__metadata__", None)
    spans, found = [], {}
    for name, value in header.items():
        entry, span = _entry(file, name, value, 8 + length, size)
        found[name] = entry
        spans.append((*span, name))
    spans.sort()
    for (_, end, first), (begin, _, second) in pairwise(spans):
        if begin < end:
            raise MooError(f"tensors {first!r} and {second!r} overlap", where)
    return found


def _entry(file: Path, name: str, value: Any, base: int, size: int) -> tuple[Entry, tuple[int, int]]:
    where = str(file)
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise MooError(f"tensor {name!r} is described by {str(value)[:80]!r}", where)
    dtype, shape, offsets = (
        DTYPES.get(value["dtype"]) if isinstance(value["dtype"], str) else None,
        value["shape"],
        value["data_offsets"],
    )
    if dtype is None:
        raise MooError(
            f"tensor {name!r} has dtype {value['dtype']!r}, which we do not read",
            where,
            "dequantise it first",
        )
    if not _whole_numbers(shape) or not _whole_numbers(offsets) or len(offsets) != 2 or len(shape) > 8:
        raise MooError(f"tensor {name!r} has shape {str(shape)[:60]} at {str(offsets)[:60]}", where)
    need = dtype.itemsize
    for item in shape:
        need *= item
    begin, end = offsets
    space = size - base
    if end - begin != need or end > space:
        raise MooError(
            f"tensor {name!r} needs {need} bytes, has {end - begin} ending at {end} of {space}", where
        )
    return Entry(file, dtype, tuple(shape), base + begin), (begin, end)


def _whole_numbers(values: Any) -> bool:
    return isinstance(values, list) and all(type(item) is int and item >= 0 for item in values)


def _shards(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    """Files to open, and the index's map if there is an index. Nothing is opened but the index."""
    index = folder / INDEX
    if not os.path.lexists(index):
        if not os.path.lexists(folder / SINGLE):
            other = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
            todo = (
                "pass --allow-pickle to read it with torch.load(weights_only=True)"
                if other
                else "give the folder of a checkpoint"
            )
            raise MooError(
                f"holds neither {SINGLE} nor {INDEX}" + (f" but {other[0]}" if other else ""),
                str(folder),
                todo,
            )
        return [regular_file(folder / SINGLE)], None
    try:
        content = json.loads(small_bytes(index, _MAX_INDEX), object_pairs_hook=_no_twins)
    except (ValueError, RecursionError) as error:
        raise MooError(f"is not a good index ({error})", str(index)) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise MooError("has no weight_map", str(index))
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not _PLAIN.fullmatch(name):
            raise MooError(
                f"shard {str(name)[:80]!r} of tensor {tensor[:80]!r} is not a plain file name", str(index)
            )
    names = sorted(set(weight_map.values()))
    if os.path.lexists(folder / SINGLE) and names != [SINGLE]:
        # transformers would load the one file, and other loaders the shards.
        raise MooError(f"holds both {SINGLE} and {INDEX}", str(folder), "take one of them out")
    return [regular_file(folder / name, index) for name in names], weight_map


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is listed twice")
        found[key] = value
    return found


def _check_map(weight_map: dict[str, str] | None, entries: dict[str, Entry], where: Path) -> None:
    if weight_map is None:
        return
    for tensor, name in weight_map.items():
        if tensor not in entries:
            raise MooError(f"tensor {tensor!r} is not in {name}", str(where))
        if entries[tensor].file.name != name:
            raise MooError(
                f"tensor {tensor!r} is in {entries[tensor].file.name}, the index says {name}", str(where)
            )
    for tensor, entry in entries.items():
        if tensor not in weight_map:
            raise MooError(f"tensor {tensor!r} of {entry.file.name} is not listed", str(where))
