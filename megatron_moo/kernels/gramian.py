"""Gramian of a few long rows, read once.

    G_ij = sum_e x_i[e] x_j[e]

A plain fp32 product over millions of values is 5e-4 off; partial sums of at most 4,096 values in fp32, added
in fp64, are within 1e-8 and as fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

CHUNK = 4096
# Values of one row that are handled at a time. CPU: as many as stay in the cache until they are parked (50 MB
# of two rows, one thread: 11.7 ms with 4 chunks, 7.2 with 16, 5.9 with 64). GPU: few launches.
_SPAN = {"cpu": 64 * CHUNK, "cuda": 4096 * CHUNK}


def gramian(
    rows: Sequence[torch.Tensor], park: Sequence[tuple[torch.Tensor, torch.Tensor]] = ()
) -> torch.Tensor:
    """Gramian of rows given in pieces.

    Args:
        rows: tensors ``[P_s, n]`` (fp32 or bf16) that together hold P rows of the same n values; a slice of
            columns is fine.
        park: pairs (source, target) of tensors ``[*, n]``; sources are copied to targets while the values are
            in the cache. Sources are rows of this call, or parts of them; targets overlap none of them.

    Returns:
        ``[P, P]`` fp64, on the rows' device.
    """
    n, device = rows[0].shape[1], rows[0].device
    counts = [piece.shape[0] for piece in rows]
    pairs = [(i, j) for i in range(len(rows)) for j in range(i, len(rows))]
    # One product per chunk and pair of pieces: pieces are never copied together.
    parts = {(i, j): torch.empty(n // CHUNK, counts[i], counts[j], device=device) for i, j in pairs}
    whole, span = n // CHUNK * CHUNK, _SPAN[device.type]
    for start in range(0, whole, span):
        end = min(start + span, whole)
        x = [piece[:, start:end].float().unflatten(1, (-1, CHUNK)).transpose(0, 1) for piece in rows]
        for (i, j), part in parts.items():
            torch.bmm(x[i], x[j].mT, out=part[start // CHUNK : end // CHUNK])
        _copy(park, start, end)
    total = torch.zeros(sum(counts), sum(counts), dtype=torch.float64, device=device)
    first = [0, *accumulate(counts)]
    rest = [piece[:, whole:].float() for piece in rows]
    for (i, j), part in parts.items():
        product = part.sum(0, dtype=torch.float64)
        if whole < n:
            product += rest[i] @ rest[j].T
        total[first[i] : first[i + 1], first[j] : first[j + 1]] = product
        total[first[j] : first[j + 1], first[i] : first[i + 1]] = product.T
    _copy(park, whole, n)
    return total


def _copy(park: Sequence[tuple[torch.Tensor, torch.Tensor]], start: int, end: int) -> None:
    for source, target in park:
        target[:, start:end].copy_(source[:, start:end])
