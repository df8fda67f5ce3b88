"""fp32 or bf16 rows to fp8 and back, with one scale for 128 values in the same buffer.

    scale = 2^e, the smallest with  amax <= 448 * 2^e  (e5m2: 57344 * 2^e);  code = fp8(x / scale)

Scales are powers of two, so dividing by them rounds nothing: a value is rounded once, to 3 (e5m2: 2) bits of
mantissa, and CPU and GPU agree in every bit. e >= -149, so blocks of fp32 denormals keep as many bits as any
other; blocks of zeros come back as zeros of the same sign. A NaN or Inf does not touch the scale of its
block: NaN stays NaN, Inf becomes NaN in e4m3 (which has no Inf) and stays Inf in e5m2. What is finite stays
finite.

Micikevicius et al., "FP8 formats for deep learning", arXiv 2209.05433.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_moo.kernels._choice import on_triton
from megatron_moo.kernels.rows import FORMATS, GROUP, PackedRows, packed_bytes

# Values that are handled at a time on a CPU: temporaries that stay in the cache.
_SPAN = 1 << 15
_FP32_MAX_EXPONENT = 127


class Layout(NamedTuple):
    """An fp8 format: bits of mantissa, exponent of the smallest normal and of the largest value."""

    mantissa: int
    low: int
    high: int

    @property
    def largest(self) -> float:
        """1.75 * 2^high in both formats."""
        return 1.75 * 2.0**self.high

    @property
    def below(self) -> float:
        """The largest value below 2^high."""
        return (2.0 - 2.0**-self.mantissa) * 2.0 ** (self.high - 1)


LAYOUTS = {"e4m3": Layout(3, -6, 8), "e5m2": Layout(2, -14, 15)}
DTYPES = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


def pack_rows(
    rows: torch.Tensor,
    out: torch.Tensor | None = None,
    *,
    format: str = "e4m3",
    seed: int | None = None,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pack rows for the wire.

    Args:
        rows: ``[R, n]`` fp32 or bf16, the last dimension contiguous.
        out: ``[R, packed_bytes(n)]`` uint8 to write to; a new buffer without it.
        format: ``e4m3`` or ``e5m2``.
        seed: round stochastically (unbiased) with numbers that depend on the seed and the place of a value alone;
            without it to nearest, ties to even.
        residual: ``[R, n]`` fp32, error feedback: it is added to the rows before they are packed, and afterwards
            holds what packing lost (0 where a value is not finite).

    Returns:
        ``[R, packed_bytes(n)]`` uint8 (``rows.py`` shows the layout). Row r is what one receiver gets, so the buffer
        can be the input of one all-to-all.

    Raises:
        ValueError: for a shape, dtype or format that does not fit.
    """
    out = _checked(rows, out, format, residual)
    if rows.numel() == 0:
        return out
    if on_triton(rows):
        from megatron_moo.kernels.pack_triton import launch_pack

        launch_pack(rows, out, format, seed, residual)
    else:
        pack_rows_torch(rows, out, format, seed, residual)
    return out


def unpack(packed: PackedRows, out: torch.Tensor | None = None) -> torch.Tensor:
    """Packed rows as numbers.

    Args:
        packed: rows of :func:`pack_rows`.
        out: ``[P, n]`` fp32 or bf16 to write to; new fp32 rows without it.

    Raises:
        ValueError: for an output of another shape or dtype.
    """
    if out is None:
        out = torch.empty(packed.shape, device=packed.device)
    elif out.shape != packed.shape or out.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"out is {out.dtype} {list(out.shape)}, expected float32 or bfloat16 {list(packed.shape)}"
        )
    if out.numel() == 0:
        return out
    if on_triton(packed.buffer):
        from megatron_moo.kernels.pack_triton import launch_unpack

        launch_unpack(packed, out)
    else:
        for start in range(0, packed.n, _SPAN):
            end = min(start + _SPAN, packed.n)
            out[:, start:end].copy_(decoded(packed, start, end))
    return out


def _checked(
    rows: torch.Tensor, out: torch.Tensor | None, format: str, residual: torch.Tensor | None
) -> torch.Tensor:
    if format not in FORMATS:
        raise ValueError(f"format {format!r}, expected one of {', '.join(FORMATS)}")
    if rows.dim() != 2 or rows.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"rows are {rows.dtype} {list(rows.shape)}, expected float32 or bfloat16 [R, n]")
    if rows.numel() and rows.stride(1) != 1:
        raise ValueError("the values of a row must be contiguous")
    if residual is not None and (residual.shape != rows.shape or residual.dtype != torch.float32):
        raise ValueError(f"residual is {residual.dtype} {list(residual.shape)}, expected fp32 like the rows")
    if residual is not None and residual.numel() and residual.stride(1) != 1:
        raise ValueError("the values of a residual's row must be contiguous")
    size = (rows.shape[0], packed_bytes(rows.shape[1]))
    if out is None:
        return torch.empty(size, dtype=torch.uint8, device=rows.device)
    PackedRows(out, rows.shape[1], format)
    if out.shape[0] != size[0]:
        raise ValueError(f"out has {out.shape[0]} rows, expected {size[0]}")
    return out


def pack_rows_torch(
    rows: torch.Tensor, out: torch.Tensor, format: str, seed: int | None, residual: torch.Tensor | None
) -> None:
    """The twin of the Triton kernel; equal to it in every bit."""
    packed = PackedRows(out, rows.shape[1], format)
    for r in range(rows.shape[0]):
        for start in range(0, packed.n, _SPAN):
            end = min(start + _SPAN, packed.n)
            x = rows[r, start:end].float()
            if residual is not None:
                x = x + residual[r, start:end]
            codes, scales = _encode(x, format, seed, r * packed.n + start)
            out[r, start : start + codes.numel()] = codes
            packed.scales[r, start // GROUP : start // GROUP + scales.numel()] = scales
            if residual is not None:
                one = PackedRows(out[r : r + 1], packed.n, format)
                lost = x - decoded(one, start, end)[0]
                residual[r, start:end] = torch.where(lost.isfinite(), lost, 0.0)


def _encode(x: torch.Tensor, format: str, seed: int | None, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of whole groups and their scales; ``first`` is the place of ``x[0]`` among all values."""
    fp8 = LAYOUTS[format]
    short = -x.numel() % GROUP
    groups = torch.nn.functional.pad(x, (0, short)).view(-1, GROUP)
    finite = groups.isfinite()
    exponent = _scale_exponent(torch.where(finite, groups.abs(), 0.0).amax(1), fp8)
    half = torch.div(-exponent, 2, rounding_mode="floor")
    # 2^149 is no fp32: in two steps, of which none rounds what the other would not.
    q = groups * _power(half)[:, None] * _power(-exponent - half)[:, None]
    # 2^(exponent + high) may be beyond fp32: rounding up must not reach it.
    top = torch.where(exponent + fp8.high > _FP32_MAX_EXPONENT, fp8.below, fp8.largest)[:, None]
    # torch's own conversion to e4m3 would write Inf as the largest number.
    bad = groups if format == "e5m2" else torch.copysign(torch.full_like(groups, torch.nan), groups)
    q = torch.where(finite, torch.clamp(q, -top, top), bad)
    if seed is None:
        codes = q.to(DTYPES[format]).view(torch.uint8).flatten()
    else:
        codes = _rounded_by_chance(q, finite, fp8, seed, first).flatten()
    return codes, _power(exponent)


def _scale_exponent(amax: torch.Tensor, fp8: Layout) -> torch.Tensor:
    """The smallest e >= -149 with ``amax <= 1.75 * 2^(high + e)``, int32; 0 for a zero block."""
    mantissa, exponent = torch.frexp(amax)  # amax = mantissa * 2^exponent, mantissa in [1/2, 1)
    exponent = exponent.to(torch.int32) - 1 - fp8.high + (mantissa > 0.875).to(torch.int32)
    return torch.where(amax > 0, exponent.clamp(min=-149), 0)


def _power(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent in fp32, exact from -149 to 127."""
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)


def _rounded_by_chance(
    q: torch.Tensor, finite: torch.Tensor, fp8: Layout, seed: int, first: int
) -> torch.Tensor:
    """Codes of q, rounded up with the probability of the part that is cut off."""
    bits = q.view(torch.int32)
    exponent = (((bits >> 23) & 0xFF) - 127).clamp(min=fp8.low)
    t = q.abs() * _power(fp8.mantissa - exponent)  # in units of the last bit: below 2^(mantissa + 1)
    whole = t.floor()
    place = torch.arange(first, first + q.numel(), device=q.device).view(q.shape)
    up = uniform(place, seed) < t - whole
    code = ((exponent - fp8.low) << fp8.mantissa) + whole.to(torch.int32) + up.to(torch.int32)
    bad = torch.where(q.isnan() if fp8.mantissa == 2 else ~finite, 0x7F, 0x7C)
    code = torch.where(finite, code, bad) | ((bits >> 24) & 0x80)
    return code.to(torch.uint8)


def seed_words(seed: int) -> tuple[int, int]:
    """Two words of 31 bits from a seed (Steele, Lea and Flood's SplitMix64, OOPSLA 2014)."""
    words = []
    for turn in (1, 2):
        z = (seed + turn * 0x9E3779B97F4A7C15) % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        words.append((z ^ (z >> 31)) >> 33)
    return words[0], words[1]


def uniform(place: torch.Tensor, seed: int) -> torch.Tensor:
    """Uniform fp32 numbers in [0, 1), multiples of 2^-24, one for each place (int64, counted modulo 2^32)."""
    first, second = seed_words(seed)
    h = _mixed((place + first) & 0xFFFFFFFF)
    h = _mixed((h + second) & 0xFFFFFFFF)
    return (h >> 8).float() * 2.0**-24


def _mixed(h: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit words in which every bit moves every other: MurmurHash3's final mix (Appleby)."""
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & 0xFFFFFFFF
    return h ^ (h >> 16)


def decoded(packed: PackedRows, start: int, end: int) -> torch.Tensor:
    """Values ``[start, end)`` of packed rows, ``[P, end - start]`` fp32 (torch, any device)."""
    x = _numbers(packed.values[:, start:end], packed.format)
    low, high = start // GROUP, -(-end // GROUP)
    scales = packed.scales[:, low:high]
    if start % GROUP == 0 and end % GROUP == 0:
        return x.view(len(x), -1, GROUP).mul_(scales[:, :, None]).view(len(x), -1)
    spread = scales.repeat_interleave(GROUP, 1)[:, start - low * GROUP : end - low * GROUP]
    return x.mul_(spread)


def _numbers(codes: torch.Tensor, format: str) -> torch.Tensor:
    """fp8 codes as fp32. Both formats are the upper bits of a half, which converts three times as fast."""
    wide = codes.view(torch.int8).to(torch.int16)
    if format == "e5m2":
        return (wide << 8).view(torch.float16).float()
    x = ((wide << 7) & -16385).view(torch.float16).float().mul_(256.0)
    return x.masked_fill_(wide & 0x7F == 0x7F, torch.nan)
