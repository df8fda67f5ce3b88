"""``pytorch_model*.bin`` for ``--allow-pickle``: ``torch.load(weights_only=True)`` and nothing more."""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from megatron_moo.convert.safe import INDEX, SINGLE, WEIGHTS, Entry, Safetensors
from megatron_moo.errors import MooError
from megatron_moo.models.files import regular_file


class PickledWeights:
    """Shards of pickles, mapped from disk; the same questions as :class:`Safetensors` answers.

    Raises:
        MooError: for a file that ``weights_only`` refuses, or that holds anything but tensors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: dict[str, Entry] = {}
        self._tensors: dict[str, Tensor] = {}
        for file in sorted(folder.glob("pytorch_model*.bin")):
            for name, tensor in _load(regular_file(file)).items():
                if name in self.entries:
                    raise MooError(f"tensor {name!r} is also in {self.entries[name].file.name}", str(file))
                self.entries[name] = Entry(file, tensor.dtype, tuple(tensor.shape))
                self._tensors[name] = tensor

    @staticmethod
    def found_in(folder: Path) -> bool:
        """Whether the folder has pickles and no safetensors."""
        plain = any((folder / name).exists() for name in (SINGLE, INDEX))
        return not plain and any(folder.glob("pytorch_model*.bin"))

    def check(
        self, expected: dict[str, tuple[int, ...]], tied: Iterable[str] = (), extra: Iterable[str] = ()
    ) -> None:
        """As :meth:`Safetensors.check`."""
        Safetensors.check(self, expected, tied, extra)  # type: ignore[arg-type]

    def read(self, name: str, index: int | None = None) -> Tensor:
        """One tensor, or one entry of its first axis."""
        return self._tensors[name] if index is None else self._tensors[name][index]

    def close(self) -> None:
        """Let go of the files."""
        self._tensors.clear()


def _load(file: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError) as error:
        raise MooError(
            f"is refused by torch.load(weights_only=True) ({str(error).splitlines()[0]})", str(file)
        ) from None
    tensors = isinstance(found, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in found.items()
    )
    if not tensors or any(value.dtype not in WEIGHTS for value in found.values()):
        raise MooError("holds something else than named floating point tensors", str(file))
    return found
