"""Pseudo-random permutations of any size without an index in memory.

A Feistel network over Z_a x Z_b with a*b >= n, and cycle walking back into [0, n) (Black and Rogaway,
"Ciphers with
arbitrary finite domains", 2002). a*b exceeds n by less than sqrt(n) + 1, so a walk is rarely longer than one
step.
"""

from __future__ import annotations

import hashlib
import math

_MASK = (1 << 64) - 1
_ROUNDS = 8


def stable_hash(*parts: object) -> int:
    """A 64-bit hash of the parts' text, the same on every machine and in every process."""
    digest = hashlib.blake2b("\x1f".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def mix(value: int) -> int:
    """splitmix64's finaliser: 64 bits in, 64 well-mixed bits out."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Permutation:
    """A permutation of ``range(n)``, decided by ``key``; ``inverse`` undoes it."""

    def __init__(self, n: int, key: int) -> None:
        if n < 1:
            raise ValueError(f"a permutation needs n >= 1, not {n}")
        self.n = n
        self._a = max(1, math.isqrt(n - 1) + 1)
        self._b = -(-n // self._a)
        self._keys = [mix(key + i) for i in range(_ROUNDS)]

    def __call__(self, i: int) -> int:
        """Where ``i`` goes; both in ``range(n)``."""
        self._check(i)
        while True:
            i = self._forward(i)
            if i < self.n:
                return i

    def inverse(self, i: int) -> int:
        """The j with ``self(j) == i``."""
        self._check(i)
        while True:
            i = self._backward(i)
            if i < self.n:
                return i

    def _check(self, i: int) -> None:
        if not 0 <= i < self.n:
            raise IndexError(f"{i} is outside range({self.n})")

    def _forward(self, i: int) -> int:
        left, right = divmod(i, self._b)
        for turn, key in enumerate(self._keys):
            if turn % 2 == 0:
                left = (left + mix(right ^ key)) % self._a
            else:
                right = (right + mix(left ^ key)) % self._b
        return left * self._b + right

    def _backward(self, i: int) -> int:
        left, right = divmod(i, self._b)
        for turn in range(_ROUNDS - 1, -1, -1):
            key = self._keys[turn]
            if turn % 2 == 0:
                left = (left - mix(right ^ key)) % self._a
            else:
                right = (right - mix(left ^ key)) % self._b
        return left * self._b + right


def shuffled(n: int, *key: object) -> list[int]:
    """A seeded shuffle of ``range(n)`` for small n (Fisher-Yates on splitmix64; no global random state)."""
    order = list(range(n))
    state = stable_hash(*key)
    for i in range(n - 1, 0, -1):
        state = mix(state)
        j = state % (i + 1)
        order[i], order[j] = order[j], order[i]
    return order
