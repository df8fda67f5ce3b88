"""Reading what Megatron's checkpoints pickle without running what a stranger put there.

Megatron's ``.metadata`` is a pickle, and so are the objects beside the tensors. Both are read by allow-list:
names of torch's checkpoint format and a few of the standard library are real, names of Megatron become inert
records (nothing of Megatron is imported), and any other name is refused.
"""

from __future__ import annotations

import argparse
import io
import pickle
import signal
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch

from megatron_moo.errors import MooError
from megatron_moo.models.files import regular_file

_FORMAT = "torch.distributed.checkpoint."
_METADATA_NAMES = {
    (_FORMAT + "metadata", name)
    for name in (
        "Metadata", "MetadataIndex", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
        "TensorProperties", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )
} | {
    (_FORMAT + "filesystem", "_StorageInfo"),
    (_FORMAT + "filesystem", "_StoragePrefix"),
    (_FORMAT + "planner", "SavePlan"),
    (_FORMAT + "planner", "WriteItem"),
    (_FORMAT + "planner", "WriteItemType"),
    (_FORMAT + "planner", "TensorWriteData"),
    (_FORMAT + "planner", "BytesIOWriteData"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch.serialization", "_get_layout"),
    ("collections", "OrderedDict"),
    ("builtins", "set"),
}  # fmt: skip

# What a damaged pickle makes the unpickler raise.
_DAMAGE = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError,
    ImportError, OverflowError, MemoryError,
)  # fmt: skip


class Inert:
    """Stands where a checkpoint names a class of Megatron: keeps what it was given and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], where: str) -> None:
        super().__init__(file)
        self.where = where

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _METADATA_NAMES:
            return super().find_class(module, name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module.partition(".")[0] == "pathlib" and name.endswith("PosixPath"):
            return PurePosixPath  # where the checkpoint was written; only a name
        if module.partition(".")[0] == "megatron":
            return Inert
        raise MooError(
            f"names {module}.{name}, which no checkpoint of Megatron's needs",
            self.where,
            "do not trust this file",
        )

    def persistent_load(self, pid: Any) -> Any:
        raise MooError("holds a persistent id, which no checkpoint of Megatron's does", self.where)


def load_metadata(path: Path) -> Any:
    """Read a ``.metadata`` file by allow-list.

    Raises:
        MooError: for a name outside the list, or a file that is no pickle of ``Metadata``.
    """
    from torch.distributed.checkpoint.metadata import Metadata

    regular_file(path)
    try:
        with path.open("rb") as file:
            found = _Unpickler(file, str(path)).load()
    except MooError:
        raise
    except OSError as error:
        raise MooError(f"cannot be read ({error.strerror})", str(path)) from None
    except _DAMAGE as error:
        raise MooError(f"is damaged ({type(error).__name__}: {error})", str(path)) from None
    if not isinstance(found, Metadata):
        raise MooError(f"holds a {type(found).__name__}, expected a checkpoint's metadata", str(path))
    return found


def check_stored(stream: IO[bytes] | io.RawIOBase, where: str) -> None:
    """Refuse an archive of torch's whose members are compressed: torch writes none, and a few bytes may become many.

    Raises:
        MooError: naming the member.
        zipfile.BadZipFile: for what is no archive.
    """
    with zipfile.ZipFile(stream) as packed:
        for member in packed.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
                raise MooError(
                    f"has a compressed member {member.filename[:60]!r}", where, "do not trust this file"
                )
    stream.seek(0)


def load_object(data: bytes, where: str) -> Any:
    """Read one pickled object of a checkpoint with ``torch.load(weights_only=True)``.

    Raises:
        MooError: for a name that is neither torch's, the standard library's few, nor Megatron's.
    """
    stream = io.BytesIO(data)
    try:
        check_stored(stream, where)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(stream)
    except (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        raise MooError(f"is damaged ({error})", where) from None
    allowed: list[Any] = [argparse.Namespace, signal.Signals]
    real = {"argparse.Namespace", "signal.Signals"}
    for name in names:
        if name.startswith("megatron."):
            allowed.append((type("Inert", (Inert,), {}), name))
        elif name not in real:
            raise MooError(
                f"names {name}, which no checkpoint of Megatron's needs", where, "do not trust this file"
            )
    stream.seek(0)
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(stream, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, TypeError) as error:
        raise MooError(f"is damaged ({error})", where) from None
