"""Paired statistics without distributional assumptions, and Holm's correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """Paired differences by seed, method minus reference: below 0 is better where losses are compared.

    Attributes:
        mean: of the differences.
        low, high: 95 % interval, by inverting the sign-flip test over shifts (exact for up to 16 pairs).
        p: two-sided, exact sign-flip permutation test of "symmetric around 0".
        pairs: how many.
    """

    mean: float
    low: float
    high: float
    p: float
    pairs: int


def _signs(count: int, draws: int = 65536) -> Array:
    """All sign vectors ``[2^n, n]`` for up to 16 pairs, else ``draws`` random ones of a fixed seed."""
    if count <= 16:
        flips = np.arange(2**count)[:, None] >> np.arange(count)[None, :] & 1
    else:
        flips = np.random.default_rng(0).integers(0, 2, (draws, count))
        flips[0] = 0
    signs: Array = 1.0 - 2.0 * flips.astype(np.float64)
    return signs


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p of the sign-flip permutation test on the mean, the observed signs counted.

    With n pairs the smallest p is 2 / 2^n: five pairs cannot say less than 0.0625, ten 0.00195.
    """
    d = np.asarray(differences, dtype=np.float64)
    sums = np.abs(_signs(len(d)) @ d)
    return float(np.mean(sums >= abs(d.sum()) - 1e-12 * max(1.0, np.abs(d).sum())))


def interval(differences: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Shifts that the sign-flip test does not reject: means of subsets (Hartigan 1969).

    The 2^n - 1 means of non-empty subsets cut the line into 2^n pieces, each with the same probability to hold the
    centre of a symmetric distribution. Infinite where n is too small for the level.
    """
    d = np.asarray(differences, dtype=np.float64)
    keep = _signs(len(d)) > 0
    sizes = keep.sum(1)
    means = np.sort((keep @ d)[sizes > 0] / sizes[sizes > 0])
    out = int(np.floor((1.0 - level) / 2.0 * (len(means) + 1)))
    if out < 1:
        return float("-inf"), float("inf")
    return float(means[out - 1]), float(means[-out])


def contrast(method: Mapping[int, float], reference: Mapping[int, float]) -> Contrast:
    """Paired by seed over the seeds that both have.

    Raises:
        ValueError: there is none.
    """
    seeds = sorted(set(method) & set(reference))
    if not seeds:
        raise ValueError("no seed in common")
    d = [method[seed] - reference[seed] for seed in seeds]
    return Contrast(float(np.mean(d)), *interval(d), sign_flip(d), len(d))


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p values (Holm 1979)."""
    found: dict[str, float] = {}
    worst = 0.0
    for index, name in enumerate(sorted(p, key=lambda name: p[name])):
        worst = max(worst, min(1.0, (len(p) - index) * p[name]))
        found[name] = worst
    return {name: found[name] for name in p}


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of Student's 95 % interval (nan for one value)."""
    from scipy.stats import t

    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2:
        return float(v.mean()), float("nan")
    return float(v.mean()), float(t.ppf(0.975, len(v) - 1) * v.std(ddof=1) / np.sqrt(len(v)))
