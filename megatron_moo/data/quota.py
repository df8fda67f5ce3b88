"""Which of K things comes at position t, so that counts follow given shares: a pure function of t.

Positions are cut into blocks. Each block holds whole numbers of every thing: the rounded-down share, and the
remainders by systematic sampling with a fresh random start, which is unbiased, so long-run counts follow the
shares
exactly. Inside a block every thing is spaced evenly from its own random phase, so who meets whom in a step
changes
from block to block (a fixed low-discrepancy sequence would let some pairs never meet).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from megatron_moo.data.permutation import stable_hash

BLOCK = 1024


def normalise(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares scaled to sum 1.

    Raises:
        ValueError: none, negative, non-finite or all zero.
    """
    values = np.asarray(shares, np.float64)
    if values.size == 0 or not np.all(np.isfinite(values)) or np.any(values < 0) or values.sum() <= 0:
        raise ValueError(f"shares must be finite, >= 0 and not all zero: {list(shares)}")
    return tuple(float(v) for v in values / values.sum())


@lru_cache(maxsize=4096)
def _block(shares: tuple[float, ...], key: int, index: int) -> np.ndarray:
    generator = np.random.default_rng((key, index))
    counts = _counts(np.asarray(shares), generator)
    times, things = [], []
    for thing, count in enumerate(counts):
        times.append((np.arange(count) + generator.random()) / max(count, 1))
        things.append(np.full(count, thing))
    order = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(things)[order]


def _counts(shares: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    wanted = shares * BLOCK
    counts = np.floor(wanted + 1e-9).astype(np.int64)
    rest = np.maximum(wanted - counts, 0.0)
    extra = BLOCK - int(counts.sum())
    if extra:
        # One pick per unit of the remainders laid end to end in random order: each is hit with its own
        # probability.
        order = generator.permutation(len(shares))
        ends = np.cumsum(rest[order]) * (extra / rest.sum())
        picks = np.searchsorted(ends, np.arange(extra) + generator.random(), side="right")
        np.add.at(counts, order[np.minimum(picks, len(order) - 1)], 1)
    return counts


def draw(shares: tuple[float, ...], key: int, position: int) -> int:
    """The thing at ``position`` (from 0). ``shares`` must come from ``normalise``."""
    if len(shares) == 1:
        return 0
    index, at = divmod(position, BLOCK)
    return int(_block(shares, key, index)[at])


def sequence_key(*parts: object) -> int:
    """The key of one sequence of draws."""
    return stable_hash("quota", *parts)
