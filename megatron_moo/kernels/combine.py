"""The update of a shard: d = sum_r c_r x_r, written in place into one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_moo.kernels._choice import on_triton
from megatron_moo.kernels.pack import decoded
from megatron_moo.kernels.rows import Rows, check_rows, few_enough
from megatron_moo.kernels.segments import SegmentTable, whole

# Values of a row that are handled at a time: the result of a span stays in the cache until it is written.
_SPAN = 1 << 16


def combine(rows: Sequence[Rows], coefficients: torch.Tensor, out: torch.Tensor, masked: bool = True) -> None:
    """Write ``coefficients @ rows`` to ``out``.

    Args:
        rows: tensors ``[P_s, n]`` (fp32 or bf16) or :class:`PackedRows`, together P rows.
        coefficients: ``[P]``, any float dtype.
        out: ``[n]`` fp32 or bf16; may be one of the rows, since each span is computed before it is written.
        masked: leave out rows whose coefficient is zero, whatever they hold (0 x NaN is NaN). On a CPU it costs another
            pass over the rows; give False when every row is known to be finite.

    More than 32 rows take the twin, on a GPU too.

    Raises:
        ValueError: on a GPU, for a dtype that the kernel does not read.
    """
    if out.numel() and few_enough(rows) and on_triton(out):
        from megatron_moo.kernels.combine_triton import launch_combine

        check_rows(rows)
        launch_combine(rows, coefficients[None], whole(out.numel()), out, masked, norms=False)
        return
    combine_torch(rows, coefficients, out, 0, masked)


def combine_segments(
    rows: Sequence[Rows],
    coefficients: torch.Tensor,
    table: SegmentTable,
    out: torch.Tensor,
    masked: bool = True,
    norms: bool = True,
) -> torch.Tensor | None:
    """Combine the rows of many blocks in one launch.

    Args:
        rows: pieces as for :func:`combine`, 1 to 32 rows together, of n values.
        coefficients: ``[B, P]``, any float dtype; row b holds those of block b.
        table: which values belong to which block; values in no segment are left as they are.
        out: ``[n]`` fp32 or bf16; may be one of the rows.
        masked: as for :func:`combine`; on a GPU it costs nothing and saves reading those rows.
        norms: whether to return the squared norms.

    Returns:
        Squared norm of what was written, ``[len(table.blocks)]`` fp64 in the order of ``table.blocks``, or None.

    Raises:
        ValueError: for too many rows, another dtype, or a shape that does not fit.
    """
    count, n = check_rows(rows)
    if out.shape != (n,) or out.dtype not in (torch.float32, torch.bfloat16) or (n and out.stride(0) != 1):
        raise ValueError(f"out is {out.dtype} {list(out.shape)}, expected contiguous fp32 or bf16 [{n}]")
    if (
        table.end > n
        or coefficients.shape[1:] != (count,)
        or max(table.blocks, default=-1) >= len(coefficients)
    ):
        raise ValueError(
            f"segments to {table.end} of blocks {table.blocks} do not fit rows [{count}, {n}] and coefficients "
            f"{list(coefficients.shape)}"
        )
    if table.segments and on_triton(out):
        from megatron_moo.kernels.combine_triton import launch_combine

        return launch_combine(rows, coefficients, table, out, masked, norms)
    squares = torch.zeros(len(table.blocks), dtype=torch.float64, device=out.device)
    for start, end, block in table.segments:
        part = out[start:end]
        combine_torch(rows, coefficients[block], part, start, masked)
        if norms:
            squares[table.blocks.index(block)] += _squared_norm(part)
    return squares if norms else None


def combine_torch(
    rows: Sequence[Rows], coefficients: torch.Tensor, out: torch.Tensor, begin: int, masked: bool
) -> None:
    """The twin of the Triton kernel; ``out`` holds the values of the rows from ``begin`` on."""
    c = coefficients.float().split([piece.shape[0] for piece in rows])
    used = [(part != 0)[:, None] for part in c] if masked else []
    for start in range(0, out.numel(), _SPAN):
        end = min(start + _SPAN, out.numel())
        total: torch.Tensor | None = None
        for index, piece in enumerate(rows):
            if isinstance(piece, torch.Tensor):
                x = piece[:, begin + start : begin + end].float()
            else:
                x = decoded(piece, begin + start, begin + end)
            if masked:
                x = torch.where(used[index], x, 0.0)
            if len(x) > 1:
                part = c[index] @ x
                total = part if total is None else total.add_(part)
            else:  # a product of a matrix of one row takes 1.5 times as long
                total = x[0] * c[index] if total is None else total.addcmul_(x[0], c[index])
        assert total is not None
        out[start:end].copy_(total)


def _squared_norm(x: torch.Tensor) -> torch.Tensor:
    """fp64, of partial sums over a span."""
    return torch.stack([part.float().square().sum(dtype=torch.float64) for part in x.split(_SPAN)]).sum()
