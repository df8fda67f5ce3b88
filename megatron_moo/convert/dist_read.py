"""Megatron's ``torch_dist`` checkpoint, read tensor by tensor without a process group.

Every tensor is kept as chunks, however the ranks that wrote it were laid out; :meth:`Checkpoint.read` puts
the asked part together from the chunks that overlap it, one chunk in memory at a time.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_moo.convert.unpickle import check_stored, load_metadata, load_object
from megatron_moo.errors import MooError
from megatron_moo.models.files import small_bytes
from megatron_moo.training.integrity import CHECKSUMS, verify

TRACKER = "latest_checkpointed_iteration.txt"
COMMON = "common_state/shard_0_1"
_SMALL, _COMMON_BYTES = 1 << 20, 256 << 20


def checkpoint_folder(folder: Path) -> Path:
    """The newest checkpoint of a save folder, or the folder itself when it is one checkpoint.

    Raises:
        MooError: when there is none, or the tracker file is empty or names one that is missing.
    """
    if (folder / ".metadata").exists():
        return folder
    tracker = folder / TRACKER
    if not tracker.exists():
        raise MooError(f"holds no Megatron checkpoint (no {TRACKER}, no .metadata)", str(folder))
    text = small_bytes(tracker, _SMALL).decode("utf-8", "replace").strip()
    if not re.fullmatch(r"release|\d{1,9}", text):
        raise MooError(f"says {text[:40]!r}, expected a step or 'release'", str(tracker))
    found = folder / ("release" if text == "release" else f"iter_{int(text):07d}")
    if not (found / ".metadata").exists():
        raise MooError(f"names {found.name}, which is not there or not complete", str(tracker))
    return found


class Checkpoint:
    """One checkpoint folder (``iter_…`` or ``release``).

    Args:
        folder: the folder with ``.metadata``.

    Raises:
        MooError: for a damaged or foreign checkpoint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if (folder / CHECKSUMS).exists():  # a run of ours wrote it; Megatron's own have none
            verify(folder)
        self._check_format()
        metadata = load_metadata(folder / ".metadata")
        self.tensors: dict[str, Any] = {}
        self.objects: set[str] = set()
        for key, value in metadata.state_dict_metadata.items():
            if hasattr(value, "chunks"):
                self.tensors[key] = value
            else:
                self.objects.add(key)
        self._storage = {
            (index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()
        }
        self._sizes = {
            name: self._file_size(name)
            for name in sorted({str(i.relative_path) for i in self._storage.values()})
        }
        self._check_claims()
        self._files: dict[str, io.BufferedReader] = {}

    def _check_claims(self) -> None:
        """Nothing is allocated by what ``.metadata`` says that the files could not hold."""
        there = sum(self._sizes.values())
        for key, value in self.tensors.items():
            sizes = [int(size) for size in value.size]
            need = math.prod(sizes) * value.properties.dtype.itemsize
            if min(sizes, default=0) < 0 or need > there:
                raise MooError(
                    f"says that tensor {key!r} is {sizes}, {need:,} bytes; the files have {there:,}",
                    str(self.folder / ".metadata"),
                )

    def _check_format(self) -> None:
        path = self.folder / "metadata.json"
        try:
            content = json.loads(small_bytes(path, _SMALL))
        except ValueError as error:
            raise MooError(
                f"cannot be read ({error})", str(path), "only complete torch_dist checkpoints convert"
            ) from None
        if not isinstance(content, dict) or content.get("sharded_backend") != "torch_dist":
            raise MooError(
                f"says {str(content)[:80]}, expected torch_dist",
                str(path),
                "save with --ckpt-format torch_dist",
            )

    def _file_size(self, name: str) -> int:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.distcp", name):
            raise MooError(
                f"names the file {name[:80]!r}, which is not a plain file name",
                str(self.folder / ".metadata"),
            )
        try:
            status = os.lstat(self.folder / name)
        except OSError:
            raise MooError(f"file {name!r} is missing", str(self.folder)) from None
        if not stat.S_ISREG(status.st_mode):
            raise MooError(f"{name!r} is not a regular file", str(self.folder))
        return status.st_size

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of a tensor with its leading axes.

        Raises:
            MooError: when the checkpoint lacks it.
        """
        if key not in self.tensors:
            near = [name for name in self.tensors if not name.startswith("optimizer.")][:3]
            raise MooError(f"tensor {key!r} is missing (it has {', '.join(near)} …)", str(self.folder))
        return tuple(self.tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        """Dtype of a tensor."""
        return self.tensors[key].properties.dtype

    def read(self, key: str, place: tuple[int, ...] = (), shape: tuple[int, ...] | None = None) -> Tensor:
        """One tensor, or the part of it at ``place`` in its leading axes, cut to ``shape`` (its first rows).

        Raises:
            MooError: for a part that no chunk covers, and for damaged chunks.
        """
        whole = self.shape(key)
        inner = whole[len(place) :]
        shape = inner if shape is None else shape
        low = (*place, *(0 for _ in shape))
        high = (*(i + 1 for i in place), *shape)
        out: Tensor | None = None
        covered = 0
        for offsets, sizes in self._chunks(key):
            begin = [max(a, b) for a, b in zip(low, offsets, strict=True)]
            end = [min(a, b + size) for a, b, size in zip(high, offsets, sizes, strict=True)]
            if any(a >= b for a, b in zip(begin, end, strict=True)):
                continue
            chunk = self._load(key, offsets, sizes)
            for axis, (a, b, offset) in enumerate(zip(begin, end, offsets, strict=True)):
                chunk = chunk.narrow(axis, a - offset, b - a)
            part = chunk.reshape(chunk.shape[len(place) :])
            covered += part.numel()
            if tuple(part.shape) == tuple(shape):
                return part
            if out is None:
                out = torch.empty(shape, dtype=self.dtype(key))
            spot = out
            for axis in range(len(shape)):
                spot = spot.narrow(axis, begin[len(place) + axis], part.shape[axis])
            spot.copy_(part)
        need = 1
        for size in shape:
            need *= size
        if out is None or covered != need:
            raise MooError(
                f"tensor {key!r} at {list(place)} is covered by {covered} of {need} values", str(self.folder)
            )
        return out

    def _chunks(self, key: str) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        for chunk in self.tensors[key].chunks:
            yield tuple(chunk.offsets), tuple(chunk.sizes)

    def _load(self, key: str, offsets: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
        where, window = self._window(key, offsets)
        need = self.dtype(key).itemsize
        for size in sizes:
            need *= size
        if need > window.length:
            raise MooError(f"tensor {key!r} needs {need} bytes and has {window.length}", where)
        try:
            check_stored(window, where)
            found = torch.load(io.BufferedReader(window, 1 << 20), map_location="cpu", weights_only=True)
        except (
            zipfile.BadZipFile,
            RuntimeError,
            pickle.UnpicklingError,
            ValueError,
            EOFError,
            OSError,
        ) as error:
            raise MooError(f"tensor {key!r} is damaged ({str(error).splitlines()[0]})", where) from None
        if not isinstance(found, Tensor) or tuple(found.shape) != sizes or found.dtype != self.dtype(key):
            raise MooError(f"tensor {key!r} is not what .metadata says", where)
        return found.detach()

    def _window(self, key: str, offsets: tuple[int, ...]) -> tuple[str, _Window]:
        info = self._storage.get((key, offsets))
        if info is None:
            raise MooError(
                f"chunk {list(offsets)} of {key!r} is stored nowhere", str(self.folder / ".metadata")
            )
        name = str(info.relative_path)
        where = str(self.folder / name)
        if getattr(info, "transform_descriptors", None):
            raise MooError(f"tensor {key!r} is stored transformed", where)
        if not 0 <= info.offset <= info.offset + info.length <= self._sizes[name]:
            raise MooError(
                f"tensor {key!r} ends at {info.offset + info.length}, the file at {self._sizes[name]}", where
            )
        if name not in self._files:
            self.close()
            self._files[name] = (self.folder / name).open("rb")
        return where, _Window(self._files[name], info.offset, info.length)

    def common(self) -> dict[str, Any]:
        """What the checkpoint holds beside tensors: ``args``, ``iteration`` and the like.

        Raises:
            MooError: when it lacks them or names classes that are not Megatron's.
        """
        legacy = self.folder / "common.pt"
        if legacy.exists():
            found = load_object(small_bytes(legacy, _COMMON_BYTES), str(legacy))
        elif COMMON in self.objects:
            where, window = self._window(COMMON, ())
            loaded = load_object(window.readall() or b"", where)
            found = loaded[0] if isinstance(loaded, list) and loaded else loaded
        else:
            raise MooError("holds no common state", str(self.folder))
        if not isinstance(found, dict):
            raise MooError("has a common state that is not a mapping", str(self.folder))
        return found

    def close(self) -> None:
        """Close the open data file."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class _Window(io.RawIOBase):
    """A part of a file as a file."""

    def __init__(self, file: io.BufferedReader, start: int, length: int) -> None:
        self.file, self.start, self.length, self.position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.length - self.position))
        self.file.seek(self.start + self.position)
        count = self.file.readinto(view[:count])
        self.position += count
        return count
