"""Paired statistics without distributional assumptions, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


# With more pairs than this the 2^n sign patterns are drawn, not counted (2^22 sums are 32 MB).
EXACT = 22
_DRAWS = 65536


@dataclass(frozen=True)
class Contrast:
    """Paired differences by seed, method minus reference: below 0 is better where losses are compared.

    Attributes:
        mean: of the differences.
        low, high: 95 % interval, by inverting the sign-flip test over shifts.
        p: two-sided, sign-flip permutation test of "symmetric around 0".
        pairs: how many.
        exact: whether interval and p count all 2^n sign patterns (else random ones).
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int
    exact: bool = True


def _finite(differences: Sequence[float]) -> Array:
    d = np.asarray(differences, dtype=np.float64)
    if not len(d):
        raise ValueError("no differences")
    if not np.isfinite(d).all():
        raise ValueError("a difference is not finite")
    return d


def _subsets(d: Array) -> tuple[Array, Array]:
    """Sums and sizes of all 2^n subsets, the empty one first; of random ones for more than ``EXACT`` values."""
    if len(d) > EXACT:
        keep = np.random.default_rng(0).integers(0, 2, (_DRAWS, len(d)))
        keep[0] = 0
        return keep @ d, keep.sum(1).astype(np.float64)
    sums, sizes = np.zeros(2 ** len(d)), np.zeros(2 ** len(d))
    for index, value in enumerate(d):  # those with the value beside those without
        half = 2**index
        sums[half : 2 * half] = sums[:half] + value
        sizes[half : 2 * half] = sizes[:half] + 1.0
    return sums, sizes


def smallest_p(pairs: int) -> float:
    """What p can be at least with so many pairs: all differences of one sign."""
    return float(min(1.0, 2.0 / 2.0**pairs))


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip permutation test on the mean, the observed signs counted.

    All 2^n patterns of signs are counted for up to ``EXACT`` pairs. With n pairs the smallest p is 2 / 2^n: five pairs
    cannot say less than 0.0625, ten 0.00195.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    d = _finite(differences)
    total = d.sum()
    sums = np.abs(total - 2.0 * _subsets(d)[0])
    return float(np.mean(sums >= abs(total) - 1e-12 * max(1.0, np.abs(d).sum())))


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Shifts that the sign-flip test does not reject: means of subsets (Hartigan 1969).

    The 2^n - 1 means of non-empty subsets cut the line into 2^n pieces, each with the same probability to hold the
    centre of a symmetric distribution. Infinite where n is too small for the level.

    Raises:
        ValueError: no difference, or one that is not finite.
    """
    sums, sizes = _subsets(_finite(differences))
    there = sizes > 0
    means = sums[there] / sizes[there]
    out = int(np.floor((1.0 - level) / 2.0 * (len(means) + 1)))
    if out < 1:
        return float("-inf"), float("inf")
    low, high = out - 1, len(means) - out
    means = np.partition(means, (low, high))
    return float(means[low]), float(means[high])


def contrast(method: Mapping[int, float], reference: Mapping[int, float]) -> Contrast:
    """Paired by seed over the seeds that both have.

    Raises:
        ValueError: there is none, or a difference is not finite (a diverged run has no place in a mean).
    """
    seeds = sorted(set(method) & set(reference))
    if not seeds:
        raise ValueError("no seed in common")
    d = [method[seed] - reference[seed] for seed in seeds]
    return Contrast(float(np.mean(d)), *interval(d), sign_flip(d), len(d), len(d) <= EXACT)


def holm(p: Mapping[str, float], family: int = 0) -> dict[str, float]:
    """Adjusted p values (Holm 1979).

    Args:
        p: by name.
        family: tests that were planned; those that are not in ``p`` yet count as p = 1.
    """
    found: dict[str, float] = {}
    worst, size = 0.0, max(family, len(p))
    for index, name in enumerate(sorted(p, key=lambda name: p[name])):
        worst = max(worst, min(1.0, (size - index) * p[name]))
        found[name] = worst
    return {name: found[name] for name in p}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95 % interval (nan for one value)."""
    from scipy.stats import t

    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return float(v.mean()), float("nan")
    return float(v.mean()), float(t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
