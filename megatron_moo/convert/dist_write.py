"""Megatron's ``torch_dist`` checkpoint, written tensor by tensor without a process group.

torch's own ``FileSystemWriter`` does the writing. The plan that it is given names every chunk beforehand, one
per layer and expert, and makes a chunk's tensor only when its turn has come.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_moo.convert.ahead import Ahead
from megatron_moo.errors import MooError

# A file in every folder that we make. Only a folder that has it is ever replaced: a config.json or a model.yaml may be
# the user's own.
MARK = ".megatron-moo-conversion"
_MARKED = "Made by megatron-moo convert, which replaces this folder when it is asked to with --overwrite.\n"


@dataclass(frozen=True)
class Chunk:
    """A part of a tensor that will be written.

    Attributes:
        key: the tensor.
        size: the whole tensor's shape with its leading axes.
        place: index into the leading axes.
        shape: the part's shape without them.
        dtype: its dtype.
        make: makes the part, contiguous, in memory of its own: it is freed when the part is written.
    """

    key: str
    size: tuple[int, ...]
    place: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def offsets(self) -> torch.Size:
        return torch.Size((*self.place, *(0 for _ in self.shape)))

    @property
    def sizes(self) -> torch.Size:
        return torch.Size((*(1 for _ in self.place), *self.shape))


class _Planner(DefaultSavePlanner):
    """A plan over chunks that do not exist yet, and objects that do."""

    def __init__(
        self,
        chunks: list[Chunk],
        parts: Ahead[Tensor],
        objects: dict[str, Any],
        done: Callable[[int], None],
    ) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self.chunks = {(chunk.key, chunk.offsets): chunk for chunk in chunks}
        self.parts, self.order = parts, {key: i for i, key in enumerate(self.chunks)}
        self.objects, self.done = objects, done
        self.last: Tensor | None = None
        self.failure: BaseException | None = None

    def create_local_plan(self) -> SavePlan:
        items = [_write_item(chunk) for chunk in self.chunks.values()]
        items += [WriteItem(MetadataIndex(key), WriteItemType.BYTE_IO) for key in self.objects]
        self.plan = SavePlan(items)
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        index = write_item.index
        if write_item.type == WriteItemType.BYTE_IO:
            data = io.BytesIO()
            torch.save([self.objects[index.fqn]], data)
            return data
        place = (index.fqn, torch.Size(index.offset or ()))
        chunk = self.chunks[place]
        self._let_go()
        try:
            tensor = self.parts.get(self.order[place])
        except BaseException as error:
            self.failure = error
            raise
        if tuple(tensor.shape) != chunk.shape or tensor.dtype != chunk.dtype:
            raise MooError(
                f"tensor {chunk.key!r} became {list(tensor.shape)} {tensor.dtype}, "
                f"planned {list(chunk.shape)} {chunk.dtype}"
            )
        self.done(tensor.numel() * tensor.element_size())
        self.last = tensor
        return tensor.view(chunk.sizes)

    def _let_go(self) -> None:
        """Free the part that was written: torch's writer keeps the last one of every tensor until it is done."""
        if self.last is not None and self.last.untyped_storage().resizable():
            self.last.untyped_storage().resize_(0)
        self.last = None


def _write_item(chunk: Chunk) -> WriteItem:
    return WriteItem(
        MetadataIndex(chunk.key, chunk.offsets),
        WriteItemType.SHARD,
        tensor_data=TensorWriteData(
            ChunkStorageMetadata(chunk.offsets, chunk.sizes),
            TensorProperties(dtype=chunk.dtype),
            torch.Size(chunk.size),
        ),
    )


def write_checkpoint(
    folder: Path, chunks: list[Chunk], objects: dict[str, Any], done: Callable[[int], None]
) -> None:
    """Write a ``torch_dist`` checkpoint into an empty folder.

    Args:
        folder: where ``.metadata`` and the data files go.
        chunks: the tensors' parts.
        objects: what lies beside tensors, by key with its shard (``common_state/shard_0_1``).
        done: told the bytes of every part as it is written.
    """
    folder.mkdir(parents=True)
    writer = FileSystemWriter(str(folder), single_file_per_rank=True, thread_count=1, sync_files=True)
    parts = Ahead([chunk.make for chunk in chunks], [chunk.bytes for chunk in chunks])
    planner = _Planner(chunks, parts, objects, done)
    with warnings.catch_warnings(), parts:
        # torch says that it writes from one process, which is what was asked for.
        warnings.simplefilter("ignore", UserWarning)
        try:
            dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
        except BaseException:
            # torch wraps whatever happens, an interrupt too, in an exception of its own.
            if planner.failure is not None:
                raise planner.failure from None
            raise
    (folder / "metadata.json").write_text(
        json.dumps({"sharded_backend": "torch_dist", "sharded_backend_version": 1})
    )


@contextmanager
def new_folder(target: Path, overwrite: bool = False, sources: Sequence[Path] = ()) -> Iterator[Path]:
    """A folder that becomes visible under its name only when everything in it is written.

    Args:
        target: the folder.
        overwrite: replace a conversion that is there.
        sources: what is read; a target that is or holds one of them is refused.

    Yields:
        A hidden folder beside ``target``, locked; one that an interrupted attempt left is cleared first.

    Raises:
        MooError: when ``target`` exists and is not empty, and when another conversion is writing it.
    """
    _check_target(target, overwrite, sources)
    hidden = target.parent / f".{target.name}.unfinished"
    hidden.mkdir(parents=True, exist_ok=True)
    lock = os.open(hidden, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MooError("is being written by another conversion", str(target), "wait for it") from None
        for left in hidden.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        try:
            yield hidden
        except BaseException:
            shutil.rmtree(hidden, ignore_errors=True)
            raise
        (hidden / MARK).write_text(_MARKED, encoding="utf-8")
        _put_in_place(hidden, target)
    finally:
        os.close(lock)


def _check_target(target: Path, overwrite: bool, sources: Sequence[Path]) -> None:
    if target.exists() and not target.is_dir():
        raise MooError("exists and is not a folder", str(target))
    if not target.exists() or not any(target.iterdir()):
        return
    if not overwrite:
        raise MooError("exists and is not empty", str(target), "choose another folder, or move that one away")
    if any(source.resolve().is_relative_to(target.resolve()) for source in sources):
        raise MooError("holds what would be read", str(target), "choose another folder")
    if not (target / MARK).is_file():
        raise MooError(
            f"is no conversion (it has no {MARK}) and is not replaced",
            str(target),
            "choose another folder, or move that one away",
        )


def _put_in_place(hidden: Path, target: Path) -> None:
    """Rename; a former target is removed only when the new one stands in its place."""
    former = target.parent / f".{target.name}.former"
    if former.exists():
        shutil.rmtree(former)
    if target.exists():
        os.rename(target, former)
    os.rename(hidden, target)
    _sync(target.parent)
    shutil.rmtree(former, ignore_errors=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
