"""The Triton form of ``combine.py``: all blocks of a shard in one launch, in place where ``out`` is a row."""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from megatron_moo.kernels.pack_triton import rounded
from megatron_moo.kernels.rows import Rows
from megatron_moo.kernels.segments import SegmentTable
from megatron_moo.kernels.tiles_triton import joined, row_arguments, sums, tile

CHUNK = 4096


@triton.jit
def combine_kernel(
    rows, items, coefficients, out, parts,
    F32: tl.constexpr, BF16: tl.constexpr, FP8: tl.constexpr, ALIGNED: tl.constexpr,
    OUT_ALIGNED: tl.constexpr, MASKED: tl.constexpr, NORMS: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    start = tl.load(items + 3 * item)
    end = tl.load(items + 3 * item + 1)
    block = tl.load(items + 3 * item + 2)
    k = tl.arange(0, KP)
    live = k < K
    address = tl.load(rows + k, mask=live, other=0)
    scale_address = tl.load(rows + K + k, mask=live, other=0)
    code = tl.load(rows + 2 * K + k, mask=live, other=-1)
    c = tl.load(coefficients + block * K + k, mask=live, other=0.0).to(tl.float32)
    if MASKED:  # a row without weight is not even read, whatever it holds
        live = live & (c != 0.0)
    weight = c[:, None]
    squares = tl.zeros([E], tl.float32)
    for first in range(start // E * E, end, E):
        x0, x1, x2, x3 = tile(
            address, scale_address, code, live, first, start, end, F32, BF16, FP8, ALIGNED, KP, E
        )
        d0 = tl.sum(weight * x0, axis=0)
        d1 = tl.sum(weight * x1, axis=0)
        d2 = tl.sum(weight * x2, axis=0)
        d3 = tl.sum(weight * x3, axis=0)
        d = rounded(joined(d0, d1, d2, d3, E), out.dtype.element_ty)
        place = first + tl.arange(0, E)
        target = out + place
        if OUT_ALIGNED > 0:
            target = tl.multiple_of(target, OUT_ALIGNED)
        if (first >= start) & (first + E <= end):
            tl.store(target, d)
        else:
            tl.store(target, d, mask=(place >= start) & (place < end))
        if NORMS:
            inside = (place >= start) & (place < end)
            stored = tl.where(inside, d.to(tl.float32), 0.0)  # 0 x a coefficient that is not finite is not 0
            squares += stored * stored
    if NORMS:
        tl.store(parts + item, tl.sum(squares.to(tl.float64), axis=0))


def launch_combine(
    rows: Sequence[Rows],
    coefficients: torch.Tensor,
    table: SegmentTable,
    out: torch.Tensor,
    masked: bool,
    norms: bool,
) -> torch.Tensor | None:
    """See :func:`megatron_moo.kernels.combine.combine_segments`; ``table`` has at least one segment."""
    addresses, constants = row_arguments(rows)
    items, first = table.work(CHUNK, out.device)
    parts = torch.empty(len(items), 1, dtype=torch.float64, device=out.device)
    width = 4 * out.element_size()
    combine_kernel[(len(items),)](
        addresses, items, coefficients.contiguous(), out, parts, **constants,
        OUT_ALIGNED=0 if out.data_ptr() % width else width, MASKED=masked, NORMS=norms,
        E=512 if constants["KP"] <= 8 else 256,
    )  # fmt: skip
    return sums(parts, first)[:, 0] if norms else None
