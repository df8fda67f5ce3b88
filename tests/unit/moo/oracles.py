"""Independent solutions on J itself, in numpy and scipy: nothing is shared with the solvers on trial."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from scipy.optimize import nnls

Array = np.ndarray


def _unit(J: Array) -> tuple[Array, Array]:
    s = np.linalg.norm(J, axis=1)
    return J / s[:, None], s


def mgda_by_support(J: Array) -> Array:
    """Min-norm point of the hull by trying every support (K <= 10): on each, the min-norm point of the
    affine hull."""
    scale = np.linalg.norm(J)
    J = J / scale
    best = J[np.argmin(np.linalg.norm(J, axis=1))]
    for size in range(2, len(J) + 1):
        for support in combinations(range(len(J)), size):
            rows = J[list(support)]
            edges = rows[1:] - rows[0]
            inner = np.linalg.lstsq(edges.T, -rows[0], rcond=None)[0]
            w = np.concatenate([[1.0 - inner.sum()], inner])
            if (w >= -1e-12).all():
                w = np.clip(w, 0, None)
                d = w / w.sum() @ rows
                if d @ d < best @ best:
                    best = d
    return best * scale


def mgda_by_nnls(J: Array) -> Array:
    """The same for any K: non-negative least squares on the rows of J with one more equation for the sum."""
    U, s = _unit(J)
    q = s.min() / s
    z, _ = nnls(
        np.vstack([U.T, q]), np.concatenate([np.zeros(J.shape[1]), [1.0]]), maxiter=100 * len(J) + 100
    )
    w = z * q
    return w / w.sum() @ J


def dual_cone(J: Array, point: Array) -> Array:
    """Projection of ``point [n]`` onto ``{d: J d >= 0}``, by Moreau from non-negative least squares on the
    rows."""
    U, _ = _unit(J)
    size = np.linalg.norm(point) or 1.0
    x, _ = nnls(U.T, -point / size, maxiter=100 * len(J) + 100)
    return point + size * (x @ U)


def dualproj(J: Array) -> Array:
    return dual_cone(J, J.mean(0))


def upgrad(J: Array) -> Array:
    return np.mean([dual_cone(J, row) for row in J], axis=0)


def cagrad_by_support(J: Array, c: float) -> Array:
    """``max_d min_k <g_k, d>`` in the ball, by trying every linearly independent support (K <= 8).

    On a support the best d has equal products t with its rows and lies on the sphere: t is the larger root
    of a quadratic. Every candidate is feasible, so the best value decides.
    """
    scale = np.linalg.norm(J)
    J = J / scale
    g0 = J.mean(0)
    radius = c * np.linalg.norm(g0)
    best, value = g0, -np.inf
    for size in range(1, len(J) + 1):
        for support in combinations(range(len(J)), size):
            rows = J[list(support)]
            inverse = np.linalg.pinv(rows, rcond=1e-14)
            a, b = inverse.sum(1), inverse @ (rows @ g0)
            root = (a @ b) ** 2 - (a @ a) * (b @ b - radius**2)
            if root < 0:
                continue
            step = (a @ b + np.sqrt(root)) / (a @ a) * a - b
            length = np.linalg.norm(step)
            if length == 0:
                continue
            d = g0 + step * radius / length
            if (J @ d).min() > value:
                best, value = d, (J @ d).min()
    return best * scale
