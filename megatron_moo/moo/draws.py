"""Random numbers as a pure function of (seed, step, block name, position): the same on every rank and device.

The names are hashed on the host and their keys kept on the device; everything after is a counter-based generator
(splitmix64) in integer arithmetic, which no global state and no other draw can disturb.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


def block_keys(
    cache: dict, seed: int, step: int, block: Sequence[str] | None, like: Tensor
) -> Tensor:
    """int64 key per block, ``[B]``; blocks without names are called "0", "1", …"""
    entry = (block if block is not None else like.shape[0], like.device)
    if entry not in cache:
        cache.clear()
        names = block if block is not None else [str(i) for i in range(like.shape[0])]
        cache[entry] = torch.tensor([_hash(name) for name in names], dtype=torch.int64, device=like.device)
    return mix(mix(cache[entry] + _signed(seed * _GOLDEN)) + _signed((step + 1) * _GOLDEN))


def uniform(keys: Tensor, count: int) -> Tensor:
    """``count`` numbers in (0, 1) per key, fp64 ``[..., count]``."""
    places = torch.arange(1, count + 1, dtype=torch.int64, device=keys.device) * _signed(_GOLDEN)
    bits = mix(keys.unsqueeze(-1) + places)
    return (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53


def normal(keys: Tensor, count: int) -> Tensor:
    """``count`` standard normal numbers per key, fp64 ``[..., count]`` (Box and Muller)."""
    radius, angle = uniform(keys, 2 * count).chunk(2, dim=-1)
    return (-2.0 * radius.log()).sqrt() * (2.0 * torch.pi * angle).cos()


def project_order(keys: Tensor, k: int) -> Tensor:
    """For every row i a random order of the other rows, ``[B, k, k-1]``; the place of j depends on (key, i, j) alone."""
    draw = uniform(keys, k * k).unflatten(-1, (k, k))
    draw = draw + 2.0 * torch.eye(k, dtype=draw.dtype, device=draw.device)
    return draw.sort(dim=-1, stable=True).indices[..., : k - 1]


def mix(z: Tensor) -> Tensor:
    """The output function of splitmix64, on int64 with wrap-around."""
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical right shift."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
