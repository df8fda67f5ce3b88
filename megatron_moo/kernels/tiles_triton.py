"""Rows of any dtype as fp32 tiles: what the Gramian and the combination have in common.

Rows are given by address, so that one launch reads rows of several buffers (slots, the receive buffer, the gradient
buffer) and dtypes. A tile ``[KP, E]`` is handed out as four tiles ``[KP, E / 4]`` of every fourth value: a thread
then reads 4 neighbours at once and still keeps one value a row in each of the four.
"""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from megatron_moo.kernels.pack import LAYOUTS
from megatron_moo.kernels.pack_triton import to_number, widened
from megatron_moo.kernels.rows import GROUP, PackedRows, Rows
from megatron_moo.kernels.segments import on_device

_GROUP = tl.constexpr(GROUP)
_CODES = {torch.float32: 0, torch.bfloat16: 1, "fp8": 2}
# 4 values that a thread reads together.
_ALIGNMENT = {0: 16, 1: 8, 2: 4}


@triton.jit
def quarters(x, KP: tl.constexpr, E: tl.constexpr):
    """``x [KP, E]`` as values 0, 1, 2 and 3 of every four."""
    even, odd = tl.split(tl.reshape(x, [KP, E // 4, 2, 2]))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def joined(x0, x1, x2, x3, E: tl.constexpr):
    """The inverse of :func:`quarters` for one row."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), [E])


@triton.jit
def _load(address, first, live, start, end, DTYPE: tl.constexpr, BYTES: tl.constexpr, ALIGNED: tl.constexpr,
          E: tl.constexpr):  # fmt: skip
    place = first + tl.arange(0, E)
    pointers = address.to(tl.pointer_type(DTYPE))[:, None] + place[None, :]
    if ALIGNED:
        pointers = tl.multiple_of(pointers, [1, 4 * BYTES])
    if (first >= start) & (
        first + E <= end
    ):  # a mask that is the same for neighbours lets them be read together
        x = tl.load(pointers, mask=live[:, None] & tl.full([1, E], 1, tl.int1), other=0)
    else:
        x = tl.load(pointers, mask=live[:, None] & ((place >= start) & (place < end))[None, :], other=0)
    return x


@triton.jit
def tile(
    address, scale_address, code, live, first, start, end,
    F32: tl.constexpr, BF16: tl.constexpr, FP8: tl.constexpr, ALIGNED: tl.constexpr,
    KP: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Values ``[first, first + E)`` of the rows, 0 outside ``[start, end)`` and where not ``live``.

    F32, BF16: whether rows of that dtype are among them; FP8: bits of mantissa of the packed rows, or 0.
    """
    x0 = tl.zeros([KP, E // 4], tl.float32)
    x1 = x0
    x2 = x0
    x3 = x0
    if F32:
        x = _load(address, first, live & (code == 0), start, end, tl.float32, 4, ALIGNED, E)
        x0, x1, x2, x3 = quarters(x, KP, E)
    if BF16:
        x = _load(address, first, live & (code == 1), start, end, tl.bfloat16, 2, ALIGNED, E)
        y0, y1, y2, y3 = quarters(x, KP, E)
        x0 += widened(y0)
        x1 += widened(y1)
        x2 += widened(y2)
        x3 += widened(y3)
    if FP8:
        packed = live & (code == 2)
        x = _load(address, first, packed, start, end, tl.uint8, 1, ALIGNED, E)
        y0, y1, y2, y3 = quarters(x, KP, E)
        quad = first + 4 * tl.arange(0, E // 4)  # four neighbours have one scale
        scales = scale_address.to(tl.pointer_type(tl.float32))[:, None] + (quad // _GROUP)[None, :]
        scale = tl.load(scales, mask=packed[:, None] & (quad < end)[None, :], other=0.0)
        x0 += to_number(y0, FP8) * scale
        x1 += to_number(y1, FP8) * scale
        x2 += to_number(y2, FP8) * scale
        x3 += to_number(y3, FP8) * scale
    return x0, x1, x2, x3


@triton.jit
def not_finite(x):
    """1 where NaN or Inf, else 0."""
    return ((x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) >= 0x7F800000).to(tl.int32)


@triton.jit
def sums_kernel(parts, first, out, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """``out[b] = sum of parts[first[b] : first[b + 1]]`` in a fixed order, fp64."""
    block = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    begin = tl.load(first + block)
    end = tl.load(first + block + 1)
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(begin, end, ROWS):
        row = start + tl.arange(0, ROWS)
        mask = (row < end)[:, None] & (column < width)[None, :]
        total += tl.sum(tl.load(parts + row[:, None] * width + column[None, :], mask=mask, other=0.0), axis=0)
    tl.store(out + block * width + column, total, mask=column < width)


def sums(parts: torch.Tensor, first: torch.Tensor, rows: int = 256) -> torch.Tensor:
    """Sums of runs of ``parts [I, W]`` fp64; ``first [B + 1]`` says where each begins. ``[B, W]`` fp64."""
    width, blocks = parts.shape[1], first.numel() - 1
    out = torch.empty(blocks, width, dtype=torch.float64, device=parts.device)
    sums_kernel[(blocks, triton.cdiv(width, 16))](parts, first, out, width, ROWS=rows, COLUMNS=16)
    return out


def row_arguments(rows: Sequence[Rows]) -> tuple[torch.Tensor, dict[str, Any]]:
    """What a launch is told of its rows.

    Returns:
        ``[3, K]`` int64: address, address of the scales, code of the dtype; and the constants of the kernel.
    """
    entries: list[tuple[int, int, int]] = []
    formats = set()
    for piece in rows:
        if isinstance(piece, PackedRows):
            formats.add(piece.format)
            step, scale_step = piece.buffer.stride(0), 4 * piece.scales.stride(0)
            base, scales, code = piece.buffer.data_ptr(), piece.scales.data_ptr(), _CODES["fp8"]
        else:
            step, scale_step = piece.stride(0) * piece.element_size(), 0
            base, scales, code = piece.data_ptr(), 0, _CODES[piece.dtype]
        entries += [(base + i * step, scales + i * scale_step, code) for i in range(piece.shape[0])]
    if len(formats) > 1:
        raise ValueError("packed rows of two formats in one call")
    codes = {code for _, _, code in entries}
    constants = {
        "F32": 0 in codes,
        "BF16": 1 in codes,
        "FP8": LAYOUTS[formats.pop()].mantissa if formats else 0,
        "ALIGNED": all(address % _ALIGNMENT[code] == 0 for address, _, code in entries),
        "K": len(entries),
        "KP": triton.next_power_of_2(len(entries)),
    }
    return _addresses(tuple(entries), rows[0].device), constants


@lru_cache(maxsize=4096)
def _addresses(entries: tuple[tuple[int, int, int], ...], device: torch.device) -> torch.Tensor:
    """Buffers live long, so that the same rows come again every step."""
    return on_device(torch.tensor(entries, dtype=torch.int64).T.contiguous(), device)
