"""Gramian of a few long rows, read once.

    G_ij = sum_e x_i[e] x_j[e]

A plain fp32 product over millions of values is 5e-4 off; partial sums of a few hundred values in fp32, added in fp64,
are within 1e-6 and as fast, up to 8 rows also where all values are equal and rounding has a direction (2e-6 for more).

Squares are fp32: values from about 1e-16 to 1e18 are safe. Smaller ones lose accuracy, larger ones overflow and their
row is dropped from the step as one that is not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from megatron_moo.kernels._choice import on_triton
from megatron_moo.kernels.pack import decoded
from megatron_moo.kernels.rows import Rows, check_rows, few_enough
from megatron_moo.kernels.segments import SegmentTable, whole

CHUNK = 256
# Values of one row that are handled at a time. CPU: as many as stay in the cache until they are parked (50 MB
# of two rows, one thread: 11.7 ms with 16,384 values, 7.2 with four times as many, 5.9 with
# sixteen times). GPU: few launches.
_SPAN = {"cpu": 1 << 18, "cuda": 1 << 24}

Park = Sequence[tuple[torch.Tensor, torch.Tensor]]


def gramian(rows: Sequence[Rows], park: Park = ()) -> torch.Tensor:
    """Gramian of rows given in pieces.

    Args:
        rows: tensors ``[P_s, n]`` (fp32 or bf16; a slice of columns is fine) or :class:`PackedRows`, that together
            hold P rows of the same n values.
        park: pairs (source, target) of tensors ``[*, n]``; sources are copied to targets while the values are
            in the cache. Sources are rows of this call, or parts of them; targets overlap none of them.

    Returns:
        ``[P, P]`` fp64, on the rows' device.

    More than 32 rows take the twin, on a GPU too.

    Raises:
        ValueError: on a GPU, for a dtype that the kernel does not read.
    """
    n = rows[0].shape[1]
    if n and few_enough(rows) and on_triton(_tensor(rows[0])):
        from megatron_moo.kernels.gramian_triton import launch_gramian

        check_rows(rows)
        total, _ = launch_gramian(rows, whole(n))
        _copy(park, 0, n)
        return total[0]
    return gramian_torch(rows, 0, n, park)


def gramian_segments(rows: Sequence[Rows], table: SegmentTable) -> tuple[torch.Tensor, torch.Tensor]:
    """Gramians of many blocks in one launch.

    Args:
        rows: pieces as for :func:`gramian`, 1 to 32 rows together.
        table: which values belong to which block.

    Returns:
        Gramians ``[len(table.blocks), P, P]`` fp64 and the number of values that are not finite in every row,
        ``[len(table.blocks), P]`` fp64, both in the order of ``table.blocks``.

    Raises:
        ValueError: for too many rows, another dtype, or a table that reaches beyond the rows.
    """
    count, n = check_rows(rows)
    if table.end > n:
        raise ValueError(f"the segments reach to {table.end} in rows of {n} values")
    first = _tensor(rows[0])
    if table.segments and on_triton(first):
        from megatron_moo.kernels.gramian_triton import launch_gramian

        return launch_gramian(rows, table)
    total = torch.zeros(len(table.blocks), count, count, dtype=torch.float64, device=first.device)
    bad = torch.zeros(len(table.blocks), count, dtype=torch.float64, device=first.device)
    for start, end, block in table.segments:
        index = table.blocks.index(block)
        part = gramian_torch(rows, start, end)
        total[index] += part
        if not bool(part.diagonal().isfinite().all()):
            bad[index] += _not_finite(rows, start, end)
    return total, bad


def gramian_torch(rows: Sequence[Rows], begin: int, finish: int, park: Park = ()) -> torch.Tensor:
    """The twin of the Triton kernel, for values ``[begin, finish)`` of the rows; ``park`` counts from ``begin``."""
    n, device = finish - begin, rows[0].device
    counts = [piece.shape[0] for piece in rows]
    pairs = [(i, j) for i in range(len(rows)) for j in range(i, len(rows))]
    whole_, span = n // CHUNK * CHUNK, _SPAN[device.type]
    # One product per chunk and pair of pieces: pieces are never copied together.
    room = min(span, whole_) // CHUNK
    parts = {(i, j): torch.empty(room, counts[i], counts[j], device=device) for i, j in pairs}
    sums = {(i, j): torch.zeros(counts[i], counts[j], dtype=torch.float64, device=device) for i, j in pairs}
    for start in range(0, whole_, span):
        end = min(start + span, whole_)
        x = [
            _columns(piece, begin + start, begin + end).unflatten(1, (-1, CHUNK)).transpose(0, 1)
            for piece in rows
        ]
        for (i, j), part in parts.items():
            some = part[: (end - start) // CHUNK]
            sums[i, j] += torch.bmm(x[i], x[j].mT, out=some).sum(0, dtype=torch.float64)
        _copy(park, start, end)
    total = torch.zeros(sum(counts), sum(counts), dtype=torch.float64, device=device)
    first = [0, *accumulate(counts)]
    rest = [_columns(piece, begin + whole_, finish) for piece in rows]
    for (i, j), product in sums.items():
        if whole_ < n:
            product += rest[i] @ rest[j].T
        total[first[i] : first[i + 1], first[j] : first[j + 1]] = product
        total[first[j] : first[j + 1], first[i] : first[i + 1]] = product.T
    _copy(park, whole_, n)
    return total


def _columns(piece: Rows, start: int, end: int) -> torch.Tensor:
    """Values ``[start, end)`` of rows in fp32."""
    return piece[:, start:end].float() if isinstance(piece, torch.Tensor) else decoded(piece, start, end)


def _tensor(piece: Rows) -> torch.Tensor:
    return piece if isinstance(piece, torch.Tensor) else piece.buffer


def _not_finite(rows: Sequence[Rows], begin: int, finish: int) -> torch.Tensor:
    """Values that are NaN or Inf in every row, ``[P]``."""
    counts = torch.zeros(sum(piece.shape[0] for piece in rows), dtype=torch.int64, device=rows[0].device)
    span = _SPAN[rows[0].device.type]
    for start in range(begin, finish, span):
        columns = [_columns(piece, start, min(start + span, finish)) for piece in rows]
        counts += torch.cat([(~x.isfinite()).sum(1) for x in columns])
    return counts


def _copy(park: Park, start: int, end: int) -> None:
    for source, target in park:
        target[:, start:end].copy_(source[:, start:end])
