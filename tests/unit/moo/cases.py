"""Jacobians to be held to: by rank, conditioning, conflict, row norms and scale. Everything is seeded."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

Array = np.ndarray


def random_rows(rng: np.random.Generator, k: int) -> Array:
    return rng.standard_normal((k, int(rng.integers(k, 3 * k + 4))))


def rank_deficient(rng: np.random.Generator, k: int) -> Array:
    rank = max(1, k // 2)
    return rng.standard_normal((k, rank)) @ rng.standard_normal((rank, k + 5))


def ill_conditioned(rng: np.random.Generator, k: int) -> Array:
    u, _ = np.linalg.qr(rng.standard_normal((k, k)))
    v, _ = np.linalg.qr(rng.standard_normal((k + 4, k)))
    return (u * np.logspace(0, -6, k)) @ v.T


def duplicated(rng: np.random.Generator, k: int) -> Array:
    rows = rng.standard_normal((max(1, k // 2), k + 3))
    return rows[np.arange(k) % len(rows)]


def opposed(rng: np.random.Generator, k: int) -> Array:
    rows = rng.standard_normal((k, k + 3))
    if k > 1:
        rows[1] = -rng.uniform(0.2, 3.0) * rows[0]
    return rows


def nearly_parallel(rng: np.random.Generator, k: int) -> Array:
    return rng.standard_normal(k + 3) + 10.0 ** -rng.uniform(2, 5) * rng.standard_normal((k, k + 3))


def nearly_opposed(rng: np.random.Generator, k: int) -> Array:
    signs = np.where(rng.random(k) < 0.5, -1.0, 1.0)
    return signs[:, None] * nearly_parallel(rng, k)


def norms_apart(rng: np.random.Generator, k: int) -> Array:
    return rng.standard_normal((k, k + 3)) * 10.0 ** rng.uniform(-6, 0, (k, 1))


def aligned(rng: np.random.Generator, k: int) -> Array:
    return np.abs(rng.standard_normal((k, k + 3)))


def stationary(rng: np.random.Generator, k: int) -> Array:
    """Strong Pareto stationarity: a positive combination of the rows is 0 (K = 1 has none)."""
    rows = rng.standard_normal((k, k + 3))
    if k > 1:
        rows[-1] = -rng.uniform(0.5, 1.5, k - 1) @ rows[:-1]
    return rows


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    f.__name__: f
    for f in (
        random_rows,
        rank_deficient,
        ill_conditioned,
        duplicated,
        opposed,
        nearly_parallel,
        nearly_opposed,
        norms_apart,
        aligned,
        stationary,
    )
}
SIZES = (1, 2, 3, 5, 8, 16, 64)
SCALES = (1.0, 1e-15, 1e-6, 1e6, 1e15)


def jacobians(kind: str, k: int, count: int, seed: int = 0) -> Iterator[Array]:
    """``count`` Jacobians ``[k, n]`` of one kind, at scales that take turns."""
    rng = np.random.default_rng([seed, k, list(KINDS).index(kind)])
    for i in range(count):
        yield KINDS[kind](rng, k) * SCALES[i % len(SCALES)]
