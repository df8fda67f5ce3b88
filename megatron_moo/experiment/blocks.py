"""Gramians and combinations by block, from rows per parameter."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_moo.buckets.blocks import block_of, natural_key
from megatron_moo.kernels import gramian


def bucket_names(names: Sequence[str], sizes: Sequence[int], bucket_size: int) -> list[str]:
    """Bucket of every parameter under Megatron's rule: from the last parameter on, until ``bucket_size`` is reached."""
    found: list[str] = [""] * len(names)
    bucket, filled = 0, 0
    for index in reversed(range(len(names))):
        found[index] = f"bucket{bucket}"
        filled += sizes[index]
        if filled >= bucket_size:
            bucket, filled = bucket + 1, 0
    return found


class Blocks:
    """Which parameters share weights.

    Args:
        names, sizes: parameters.
        kind: ``model``, ``layer``, ``module``, ``param`` or ``bucket`` (a quarter of the model each, Megatron's rule).

    Attributes:
        names: of the blocks.
        index: block of every parameter, ``[P]``.
    """

    def __init__(self, names: Sequence[str], sizes: Sequence[int], kind: str) -> None:
        buckets = bucket_names(names, sizes, sum(sizes) // 4)
        of = [block_of(name, kind, bucket) for name, bucket in zip(names, buckets, strict=True)]
        self.names = sorted(set(of), key=natural_key)
        self.index = torch.tensor([self.names.index(block) for block in of])

    def gramians(self, parts: torch.Tensor) -> torch.Tensor:
        """``[P, K, K]`` per parameter to ``[B, K, K]`` per block."""
        return parts.new_zeros(len(self.names), *parts.shape[1:]).index_add_(0, self.index, parts)


def param_gramians(
    rows: Sequence[torch.Tensor], scales: Sequence[torch.Tensor] | None = None
) -> torch.Tensor:
    """``[P, K, K]`` fp64 from rows ``[K, *shape]``; ``scales``: square root of a metric, ``[*shape]`` each."""
    parts = []
    for index, piece in enumerate(rows):
        flat = piece.flatten(1)
        parts.append(gramian([flat if scales is None else flat * scales[index].flatten()]))
    return torch.stack(parts)


def combined(rows: Sequence[torch.Tensor], weights: torch.Tensor) -> list[torch.Tensor]:
    """``sum_k w_k g_k`` per parameter, ``weights`` ``[P, K]``."""
    return [
        torch.mv(piece.flatten(1).T, w.to(piece.dtype)).view(piece.shape[1:])
        for piece, w in zip(rows, weights, strict=True)
    ]
