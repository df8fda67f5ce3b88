"""The safetensors side, written: shards whose headers come first and whose tensors follow one by one."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megatron_moo.convert.ahead import Ahead
from megatron_moo.convert.safe import INDEX, NAMES, SINGLE
from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Group:
    """Tensors that are made together.

    Attributes:
        names: their names.
        shapes: their shapes.
        dtype: their dtype.
        make: makes them, in order.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtype: torch.dtype
    make: Callable[[], list[Tensor]]

    @property
    def bytes(self) -> list[int]:
        sizes = []
        for shape in self.shapes:
            count = self.dtype.itemsize
            for size in shape:
                count *= size
            sizes.append(count)
        return sizes


def write_shards(folder: Path, groups: list[Group], shard_bytes: int, done: Callable[[int], None]) -> None:
    """Write groups, in order, into shards of at most ``shard_bytes`` (a larger group gets its own), and the index."""
    shards = _cut(groups, shard_bytes)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    weight_map: dict[str, str] = {}
    for name, members in zip(names, shards, strict=True):
        _write_shard(folder / name, members, done)
        weight_map |= {tensor: name for group in members for tensor in group.names}
    if len(shards) > 1:
        total = sum(sum(group.bytes) for group in groups)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _cut(groups: list[Group], limit: int) -> list[list[Group]]:
    shards: list[list[Group]] = [[]]
    room = limit
    for group in groups:
        need = sum(group.bytes)
        if shards[-1] and need > room:
            shards.append([])
            room = limit
        shards[-1].append(group)
        room -= need
    return shards


def _write_shard(path: Path, groups: list[Group], done: Callable[[int], None]) -> None:
    # Wider dtypes first keeps every tensor aligned, as the format's own writer does.
    groups = sorted(groups, key=lambda group: -group.dtype.itemsize)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for group in groups:
        for name, shape, size in zip(group.names, group.shapes, group.bytes, strict=True):
            header[name] = {
                "dtype": NAMES[group.dtype],
                "shape": list(shape),
                "data_offsets": [position, position + size],
            }
            position += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        with Ahead([group.make for group in groups], [sum(group.bytes) for group in groups]) as parts:
            for i, group in enumerate(groups):
                for data in _bytes(group, parts.get(i)):
                    file.write(data)
                    done(len(data))
        file.flush()
        os.fsync(file.fileno())


def _bytes(group: Group, made: list[Tensor]) -> Iterator[memoryview]:
    for name, shape, tensor in zip(group.names, group.shapes, made, strict=True):
        if tuple(tensor.shape) != shape or tensor.dtype != group.dtype:
            raise MooError(
                f"tensor {name!r} became {list(tensor.shape)} {tensor.dtype}, planned {list(shape)} {group.dtype}"
            )
        flat = tensor.contiguous().reshape(-1)
        yield memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")
