"""Rotary embedding with every scaling parameter, and two of them side by side.

Megatron-Core 0.19.2 hard-codes the original length 8192 and the low and high factors 1 and 4 of Llama 3.1's
scaling.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def inverse_frequencies(settings: dict[str, Any], size: int) -> tuple[Tensor, float]:
    """Inverse frequencies ``[size / 2]`` (fp32) and the factor that scales cosine and sine.

    Args:
        settings: ``base`` and, when scaled, ``type`` with its parameters (:class:`..families.extras.Extras`).
        size: size of a head.
    """
    base, kind = float(settings["base"]), settings.get("type")
    exponents = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    plain = 1.0 / (base**exponents)
    if kind is None:
        return plain, 1.0
    if kind == "linear":
        return plain / settings["factor"], 1.0
    if kind == "llama3":
        return _llama3(plain, settings), 1.0
    if kind == "yarn":
        return _yarn(plain, base, size, settings)
    raise ValueError(f"rope type {kind!r}")


def _llama3(plain: Tensor, settings: dict[str, Any]) -> Tensor:
    """Llama 3.1: long waves are divided by the factor, short ones stay, those between are blended."""
    factor, low, high, original = (settings[name] for name in ("factor", "low", "high", "original"))
    wavelength = 2 * math.pi / plain
    smooth = (original / wavelength - low) / (high - low)
    blended = (1 - smooth) * plain / factor + smooth * plain
    scaled = torch.where(wavelength > original / low, plain / factor, plain)
    between = (wavelength <= original / low) & (wavelength >= original / high)
    return torch.where(between, blended, scaled)


def _yarn(plain: Tensor, base: float, size: int, settings: dict[str, Any]) -> tuple[Tensor, float]:
    """YaRN (Peng et al. 2023, arXiv 2309.00071): a ramp between interpolation and extrapolation over the dimensions."""
    factor, original = settings["factor"], settings["original"]

    def dimension(rotations: float) -> float:
        return size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(settings.get("beta_fast", 32.0)), dimension(settings.get("beta_slow", 1.0))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)).clamp(0, 1)
    frequencies = plain / factor * ramp + plain * (1 - ramp)
    return frequencies, _concentration(settings)


def _concentration(settings: dict[str, Any]) -> float:
    given = settings.get("attention_factor")
    if given is not None:
        return float(given)
    factor = settings["factor"]

    def scale(mscale: float = 1.0) -> float:
        return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0

    mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    return scale(mscale) / scale(all_dim) if mscale and all_dim else scale()


def own_rotary(stock: Any, settings: dict[str, Any], size: int) -> float:
    """Give one of Megatron's rotary embeddings our frequencies; returns the factor of cosine and sine."""
    frequencies, concentration = inverse_frequencies(settings, size)
    stock.inv_freq = frequencies.to(stock.inv_freq.device)
    return concentration


class TwoRotary(torch.nn.Module):
    """Angles of the full and of the windowed layers side by side, ``[s, 1, 1, 2 x head]``.

    A tensor travels through Megatron's block and its recomputation as one; :class:`..attention.SelfAttention`
    takes the half that belongs to its layer.
    """

    def __init__(self, full: Any, local: Any) -> None:
        super().__init__()
        self.full, self.local = full, local

    def forward(self, *args: Any, **kw: Any) -> Tensor:
        return torch.cat([self.full(*args, **kw), self.local(*args, **kw)], -1)

    def get_rotary_seq_len(self, *args: Any, **kw: Any) -> int:
        """As Megatron's own."""
        return self.full.get_rotary_seq_len(*args, **kw)
