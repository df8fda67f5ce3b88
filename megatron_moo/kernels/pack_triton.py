"""The Triton form of ``pack.py``: one program packs 32 groups of 128 values of one row.

fp8 is written with integer operations, since not every GPU has instructions for e4m3 (sm_80 has none), and so
that the result is the twin's in every bit.
"""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_moo.kernels.pack import LAYOUTS, seed_words
from megatron_moo.kernels.rows import GROUP, PackedRows

GROUPS = 32  # that one program handles
_GROUP = tl.constexpr(GROUP)


@triton.jit
def mixed(h):
    h = (h ^ (h >> 16)) * 0x85EBCA6B
    h = (h ^ (h >> 13)) * 0xC2B2AE35
    return h ^ (h >> 16)


@triton.jit
def power(exponent):
    """2^exponent in fp32, from -149 to 127."""
    normal = (exponent + 127) << 23
    tiny = 1 << (tl.maximum(exponent, -149) + 149)
    return tl.where(exponent >= -126, normal, tiny).to(tl.float32, bitcast=True)


@triton.jit
def scale_exponent(amax, HIGH: tl.constexpr):
    tiny = amax < 1.1754943508222875e-38  # a denormal has no leading bit to read the exponent from
    bits = tl.where(tiny, amax * 16777216.0, amax).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 127 - tl.where(tiny, 24, 0)
    exponent = exponent - HIGH + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
    return tl.where(amax > 0, tl.maximum(exponent, -149), 0)


@triton.jit
def rounded(x, DTYPE: tl.constexpr):
    """fp32 ``x`` as DTYPE. To bf16 with integers: Triton's interpreter cuts off where a GPU rounds to nearest."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.int32, bitcast=True)
        up = bits + 0x7FFF + ((bits >> 16) & 1)
        bits = tl.where((bits & 0x7FFFFFFF) > 0x7F800000, bits | 0x400000, up)  # a NaN stays one
        return (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


@triton.jit
def widened(x):
    """fp32 or bf16 as fp32. From bf16 with integers: Triton's interpreter loses denormals."""
    if x.dtype == tl.bfloat16:
        return (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(tl.float32)


@triton.jit
def to_number(code, MANTISSA: tl.constexpr):
    """uint8 codes as fp32; both formats are the upper bits of a half."""
    wide = code.to(tl.int16)
    if MANTISSA == 2:
        return (wide << 8).to(tl.float16, bitcast=True).to(tl.float32)
    half = ((wide & 0x80) << 8) | ((wide & 0x7F) << 7)
    x = half.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32) * 256.0
    return tl.where((wide & 0x7F) == 0x7F, float("nan"), x)


@triton.jit
def to_code(q, up_to, MANTISSA: tl.constexpr, LOW: tl.constexpr, CHANCE: tl.constexpr):
    """|q| at most the largest fp8 value, or not finite; ``up_to`` are uniform numbers, used when CHANCE."""
    bits = q.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    exponent = tl.maximum((size >> 23) - 127, LOW)
    t = tl.abs(q) * power(MANTISSA - exponent)  # in units of the last bit: below 2^(MANTISSA + 1)
    whole = t.to(tl.int32)
    rest = t - whole.to(tl.float32)
    if CHANCE:
        up = up_to < rest
    else:
        up = (rest > 0.5) | ((rest == 0.5) & ((whole & 1) == 1))
    code = ((exponent - LOW) << MANTISSA) + whole + up.to(tl.int32)
    if MANTISSA == 2:
        bad = tl.where(size > 0x7F800000, 0x7F, 0x7C)
    else:
        bad = 0x7F
    code = tl.where(size >= 0x7F800000, bad, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit(do_not_specialize=["seed0", "seed1"])  # a word of 1 would be a constant, which has no dtype
def pack_kernel(
    rows, row_stride, out, out_words, residual, residual_stride, n, seed0, seed1,
    MANTISSA: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, LARGEST: tl.constexpr, BELOW: tl.constexpr,
    CHANCE: tl.constexpr, FEEDBACK: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    count = (n + _GROUP - 1) // _GROUP
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    place = group.to(tl.int64)[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    live = place < n
    x = widened(tl.load(rows + row * row_stride + place, mask=live, other=0.0))
    if FEEDBACK:
        x += tl.load(residual + row * residual_stride + place, mask=live, other=0.0)
    finite = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000
    exponent = scale_exponent(tl.max(tl.where(finite, tl.abs(x), 0.0), axis=1), HIGH)
    half = (-exponent) >> 1
    q = x * power(half)[:, None] * power(-exponent - half)[:, None]
    top = tl.where(exponent + HIGH > 127, BELOW, LARGEST)[:, None]
    q = tl.where(finite, tl.minimum(tl.maximum(q, -top), top), x)
    up_to = q
    if CHANCE:
        word = (row * n + place).to(tl.uint32) + seed0.to(tl.uint32)
        word = mixed(mixed(word) + seed1.to(tl.uint32))
        up_to = (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    code = to_code(q, up_to, MANTISSA, LOW, CHANCE)
    target = out + row * out_words * 4  # in words, so that the compiler sees the alignment
    whole = group < count
    tl.store(target + place, code, mask=whole[:, None] & (place < count * _GROUP))
    scale = power(exponent)
    scales = (target + _GROUP * count.to(tl.int64)).to(tl.pointer_type(tl.float32))
    tl.store(scales + group, scale, mask=whole)
    if FEEDBACK:
        lost = x - to_number(code, MANTISSA) * scale[:, None]
        lost = tl.where((lost.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000, lost, 0.0)
        tl.store(residual + row * residual_stride + place, lost, mask=live)


@triton.jit
def unpack_kernel(packed, packed_words, out, out_stride, n, MANTISSA: tl.constexpr, GROUPS: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    count = (n + _GROUP - 1) // _GROUP
    group = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    place = group.to(tl.int64)[:, None] * _GROUP + tl.arange(0, _GROUP)[None, :]
    live = place < n
    source = packed + row * packed_words * 4
    scales = (source + _GROUP * count.to(tl.int64)).to(tl.pointer_type(tl.float32))
    scale = tl.load(scales + group, mask=group < count, other=0.0)
    x = to_number(tl.load(source + place, mask=live, other=0), MANTISSA) * scale[:, None]
    tl.store(out + row * out_stride + place, rounded(x, out.dtype.element_ty), mask=live)


def launch_pack(
    rows: torch.Tensor, out: torch.Tensor, format: str, seed: int | None, residual: torch.Tensor | None
) -> None:
    """See :func:`megatron_moo.kernels.pack.pack_rows`; ``rows`` has at least one value."""
    fp8 = LAYOUTS[format]
    first, second = (0, 0) if seed is None else seed_words(seed)
    grid = (triton.cdiv(rows.shape[1], GROUPS * GROUP), rows.shape[0])
    held = out if residual is None else residual
    pack_kernel[grid](
        rows, rows.stride(0), out, out.stride(0) // 4, held, held.stride(0), rows.shape[1], first, second,
        MANTISSA=fp8.mantissa, LOW=fp8.low, HIGH=fp8.high, LARGEST=fp8.largest, BELOW=fp8.below,
        CHANCE=seed is not None, FEEDBACK=residual is not None, GROUPS=GROUPS,
    )  # fmt: skip


def launch_unpack(packed: PackedRows, out: torch.Tensor) -> None:
    """See :func:`megatron_moo.kernels.pack.unpack`; ``out`` has at least one value."""
    buffer = packed.buffer
    grid = (triton.cdiv(packed.n, GROUPS * GROUP), buffer.shape[0])
    unpack_kernel[grid](
        buffer, buffer.stride(0) // 4, out, out.stride(0), packed.n,
        MANTISSA=LAYOUTS[packed.format].mantissa, GROUPS=GROUPS,
    )  # fmt: skip
