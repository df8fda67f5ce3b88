"""Random numbers as a pure function of (seed, step, block name, position): the same on every rank and device.

The names are hashed on the host and their keys kept on the device; everything after is a counter-based
generator (splitmix64) in integer arithmetic, which no global state and no other draw can disturb.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .options import Option
from .problem import Problem, block_names

_GOLDEN = 0x9E3779B97F4A7C15


SEED = Option(0, "seed of the draws", low=0, high=2**31 - 1)


class BlockKeys:
    """int64 key per block from (seed, step, block name); the hashes of the last call's names stay on the
    device."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._names: tuple[str, ...] = ()
        self._hashes: Tensor | None = None

    def __call__(self, problem: Problem) -> Tensor:
        """Keys ``[B]``."""
        names, device = block_names(problem), problem.p.device
        if self._hashes is None or self._names != names or self._hashes.device != device:
            self._names = names
            self._hashes = torch.tensor([_hash(name) for name in names], dtype=torch.int64, device=device)
        keys = mix(self._hashes + _signed((self.seed + 1) * _GOLDEN))
        return mix(keys + _signed((problem.step + 1) * _GOLDEN))

    def order(self, problem: Problem) -> Tensor:
        """The order that was given, or a random one: for every row i the other rows, ``[B, K, K-1]``.

        The place of j depends on (key, i, j) alone, not on K, so an absent row does not change the order of the
        others, and neither does leaving out the last one.
        """
        if problem.order is not None:
            return problem.order
        k = problem.p.shape[-1]
        draw = at_places(self(problem), _pairs(k, problem.p.device)).unflatten(-1, (k, k))
        draw = draw + 2.0 * torch.eye(k, dtype=draw.dtype, device=draw.device)  # i itself comes last
        return draw.sort(dim=-1, stable=True).indices[..., : k - 1]


def _pairs(k: int, device: torch.device) -> Tensor:
    """A number for every pair (i, j), row by row ``[k * k]``: j^2 + i where i < j, else i^2 + i + j.

    Pairs of small numbers come first (Szudzik's pairing), so a number does not depend on k.
    """
    j = torch.arange(k, dtype=torch.int64, device=device)
    i = j.unsqueeze(-1)
    return torch.where(i < j, j * j + i, i * i + i + j).flatten()


def uniform(keys: Tensor, count: int) -> Tensor:
    """``count`` numbers in (0, 1) per key, fp64 ``[..., count]``."""
    return at_places(keys, torch.arange(count, dtype=torch.int64, device=keys.device))


def at_places(keys: Tensor, places: Tensor) -> Tensor:
    """The numbers in (0, 1) that stand at ``places`` ``[N]`` (int64, from 0) of every key's sequence, ``[..., N]``."""
    bits = mix(keys.unsqueeze(-1) + (places + 1) * _signed(_GOLDEN))
    return (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53


def normal(keys: Tensor, count: int) -> Tensor:
    """``count`` standard normal numbers per key, fp64 ``[..., count]`` (Box and Muller)."""
    radius, angle = uniform(keys, 2 * count).chunk(2, dim=-1)
    return (-2.0 * radius.log()).sqrt() * (2.0 * torch.pi * angle).cos()


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
