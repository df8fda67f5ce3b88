"""The Triton form of ``gramian.py``: all blocks of a shard in one launch, each value read once.

One program takes one work item. Up to 8 rows a thread keeps all K^2 products of its own values in registers (fp32,
at most 128 values in each sum) and threads are added in fp64; above that a product of tiles of at most 4,096 values.
A second, small launch adds the items of a block in fp64, in a fixed order.
"""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from megatron_moo.kernels.rows import Rows
from megatron_moo.kernels.segments import SegmentTable
from megatron_moo.kernels.tiles_triton import not_finite, row_arguments, sums, tile

# Values of an item: few enough for several rounds of programs on every multiprocessor, many enough that
# writing K^2 sums for each costs nothing.
CHUNK = {"few": 16384, "many": 4096}


@triton.jit
def gramian_kernel(
    rows, items, parts,
    F32: tl.constexpr, BF16: tl.constexpr, FP8: tl.constexpr, ALIGNED: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    item = tl.program_id(0).to(tl.int64)
    start = tl.load(items + 3 * item)
    end = tl.load(items + 3 * item + 1)
    k = tl.arange(0, KP)
    live = k < K
    address = tl.load(rows + k, mask=live, other=0)
    scale_address = tl.load(rows + K + k, mask=live, other=0)
    code = tl.load(rows + 2 * K + k, mask=live, other=-1)
    FEW: tl.constexpr = KP <= 8
    if FEW:
        sums = tl.zeros([KP, KP, E // 4], tl.float32)
    else:
        sums = tl.zeros([KP, KP], tl.float32)
    aligned = start // E * E
    for first in range(aligned, end, E):
        x0, x1, x2, x3 = tile(
            address, scale_address, code, live, first, start, end, F32, BF16, FP8, ALIGNED, KP, E
        )
        if FEW:
            sums += x0[:, None, :] * x0[None, :, :]
            sums += x1[:, None, :] * x1[None, :, :]
            sums += x2[:, None, :] * x2[None, :, :]
            sums += x3[:, None, :] * x3[None, :, :]
        else:
            sums = tl.dot(x0, tl.trans(x0), sums, input_precision="ieee")
            sums = tl.dot(x1, tl.trans(x1), sums, input_precision="ieee")
            sums = tl.dot(x2, tl.trans(x2), sums, input_precision="ieee")
            sums = tl.dot(x3, tl.trans(x3), sums, input_precision="ieee")
    if FEW:
        total = tl.sum(sums.to(tl.float64), axis=2)
    else:
        total = sums.to(tl.float64)
    part = parts + item * (K * K + K)
    tl.store(part + k[:, None] * K + k[None, :], total, mask=live[:, None] & live[None, :])
    bad = tl.zeros([KP], tl.int32)
    trace = tl.sum(tl.sum(total, axis=1), axis=0)
    if trace - trace != 0.0:  # only then is a value not finite: look again, and count
        for first in range(aligned, end, E):
            x0, x1, x2, x3 = tile(
                address, scale_address, code, live, first, start, end, F32, BF16, FP8, ALIGNED, KP, E
            )
            bad += tl.sum(not_finite(x0) + not_finite(x1) + not_finite(x2) + not_finite(x3), axis=1)
    tl.store(part + K * K + k, bad.to(tl.float64), mask=live)


def launch_gramian(rows: Sequence[Rows], table: SegmentTable) -> tuple[torch.Tensor, torch.Tensor]:
    """See :func:`megatron_moo.kernels.gramian.gramian_segments`; ``table`` has at least one segment."""
    addresses, constants = row_arguments(rows)
    k = constants["K"]
    few = constants["KP"] <= 8
    items, first = table.work(CHUNK["few" if few else "many"], rows[0].device)
    parts = torch.empty(len(items), k * k + k, dtype=torch.float64, device=rows[0].device)
    gramian_kernel[(len(items),)](addresses, items, parts, **constants, E=512 if few else 128)
    out = sums(parts, first)
    return out[:, : k * k].unflatten(1, (k, k)), out[:, k * k :]
