"""How tensors of a Hugging Face checkpoint lie inside one tensor of Megatron's, both ways.

Every layout is a permutation: ``split(join(parts)) == parts`` bit for bit. Shapes are those of one layer (and
one expert), without Megatron's leading axes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

Dims = Mapping[str, int]


class Layout(Protocol):
    """Between the parts and the whole."""

    def join(self, parts: list[Tensor], dims: Dims) -> Tensor:
        """Hugging Face's parts to Megatron's tensor."""

    def split(self, whole: Tensor, dims: Dims) -> list[Tensor]:
        """Megatron's tensor to Hugging Face's parts."""


class Copy:
    """The same tensor."""

    def join(self, parts: list[Tensor], dims: Dims) -> Tensor:
        return parts[0]

    def split(self, whole: Tensor, dims: Dims) -> list[Tensor]:
        return [whole]


class Stack:
    """Parts of equal size one below the other: gate and up projection."""

    def __init__(self, count: int = 2) -> None:
        self.count = count

    def join(self, parts: list[Tensor], dims: Dims) -> Tensor:
        return torch.cat(parts)

    def split(self, whole: Tensor, dims: Dims) -> list[Tensor]:
        return list(whole.chunk(self.count))


class QKV:
    """Megatron keeps the queries of a group beside its key and value: ``[groups, heads/groups + 2, head]``.

    Parts are q ``[heads x head, ...]``, k and v ``[groups x head, ...]``: weights, or biases.
    """

    def join(self, parts: list[Tensor], dims: Dims) -> Tensor:
        groups, head = dims["groups"], dims["head"]
        q, k, v = (part.reshape(groups, -1, head, *part.shape[1:]) for part in parts)
        return torch.cat([q, k, v], 1).flatten(0, 2)

    def split(self, whole: Tensor, dims: Dims) -> list[Tensor]:
        groups, head = dims["groups"], dims["head"]
        grouped = whole.reshape(groups, -1, head, *whole.shape[1:])
        sizes = [grouped.shape[1] - 2, 1, 1]
        return [part.flatten(0, 2) for part in grouped.split(sizes, 1)]


class InterleavedRows:
    """Gate and up projection in turn, row by row (GPT-OSS): rows 0, 2, 4 ... are the gate.

    With ``transposed`` the part is ``[in, out]``.
    """

    def __init__(self, transposed: bool) -> None:
        self.transposed = transposed

    def join(self, parts: list[Tensor], dims: Dims) -> Tensor:
        rows = parts[0].mT if self.transposed else parts[0]
        return torch.cat([rows[0::2], rows[1::2]])

    def split(self, whole: Tensor, dims: Dims) -> list[Tensor]:
        rows = torch.stack(whole.chunk(2), 1).flatten(0, 1)
        return [rows.mT if self.transposed else rows]


class Transposed:
    """``[in, out]`` to ``[out, in]``."""

    def join(self, parts: list[Tensor], dims: Dims) -> Tensor:
        return parts[0].mT

    def split(self, whole: Tensor, dims: Dims) -> list[Tensor]:
        return [whole.mT]


COPY, GATE_UP, QKV_GROUPS = Copy(), Stack(), QKV()
