"""Independent solutions on J itself, in numpy and scipy: nothing is shared with the solvers on trial."""

from __future__ import annotations

from itertools import combinations

import cvxpy as cp
import mpmath
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


def _rank(U: Array) -> int:
    values = np.linalg.svd(U, compute_uv=False)
    return int((values > 1e-7 * values[0]).sum())


def _equal_cosines(J: Array) -> Array:
    """``G v = s`` with 60 digits from J, for independent rows."""
    with mpmath.workdps(60):
        M = mpmath.matrix(J.tolist())
        G = M * M.T
        s = [mpmath.sqrt(G[i, i]) for i in range(len(J))]
        v = mpmath.lu_solve(G, mpmath.matrix(s))
        return np.array(list(v))


def imtl_g(J: Array) -> Array:
    """Equal projections: in 60 digits for independent rows, else from the singular vectors of J."""
    if _rank(_unit(J)[0]) == len(J):
        v = _equal_cosines(J)
    else:
        s = np.linalg.norm(J, axis=1)
        left, values, _ = np.linalg.svd(J / s.max(), full_matrices=False)
        keep = values > 1e-7 * values[0]
        left, values = left[:, keep], values[keep]
        v = left @ (left.T @ (s / s.max()) / values**2)
    return (v / v.sum() @ J).astype(float)


def config(J: Array) -> Array:
    """Equation 2 of the paper on J: in 60 digits for independent rows, else by the pseudo-inverse of the
    unit rows."""
    U, _ = _unit(J)
    if _rank(U) == len(J):
        v = _equal_cosines(J)
        best = v @ J
        norm = mpmath.sqrt(sum(best * best))
        best = (best / norm).astype(float)
    else:
        best = np.linalg.pinv(U, rcond=1e-7) @ np.ones(len(J))
        best = best / np.linalg.norm(best)
    return (J @ best).sum() * best


def fairgrad(J: Array, alpha: float) -> Array:
    """Weights by damped Newton on the convex ``||J^T w||^2 / 2 - sum phi(w)``, ``phi' = w^{-1/alpha}``, in
    numpy."""
    scale = np.linalg.norm(J, axis=1)
    U = J / scale[:, None]
    h = scale ** (1 / alpha - 1)
    h, size = h / h.max(), h.max()
    power = -1 / alpha

    def value(x: Array) -> float:
        phi = np.log(x) if alpha == 1 else x ** (1 + power) / (1 + power)
        return 0.5 * np.sum((x @ U) ** 2) - h @ phi

    x = h ** (alpha / (1 + alpha))
    for _ in range(500):
        gradient = U @ (x @ U) - h * x**power
        hessian = U @ U.T - np.diag(h * power * x ** (power - 1))
        step = np.linalg.solve(hessian, -gradient)
        length = 1.0
        while (x + length * step <= 0).any() or value(x + length * step) > value(x) + 1e-4 * length * (
            gradient @ step
        ):
            length /= 2
            if length < 1e-12:
                break
        x = x + length * step
        if length * np.abs(step / x).max() < 1e-14:
            break
    return x * size ** (alpha / (1 + alpha)) / scale


def from_rounded_gramian(method: str, J: Array) -> Array:
    """What the exact solution (60 digits) of G, rounded to fp64, would give: no solver that sees G can do
    better."""
    G = J @ J.T
    with mpmath.workdps(60):
        M = mpmath.matrix(G.tolist())
        s = [mpmath.sqrt(M[i, i]) for i in range(len(J))]
        v = mpmath.lu_solve(M, mpmath.matrix(s))
        if method == "imtl_g":
            w = [x / sum(v) for x in v]
        else:
            factor = sum(M * v) / sum(v[i] * s[i] for i in range(len(J)))
            w = [factor * x for x in v]
        return np.array(
            [float(sum(w[i] * mpmath.mpf(J[i, c]) for i in range(len(J)))) for c in range(J.shape[1])]
        )


def imtl_g_in_fp64(J: Array) -> Array:
    """As :func:`imtl_g`, fast enough for 64 rows: a QR solution on unit rows in place of 60 digits."""
    U, s = _unit(J)
    if _rank(U) < len(J):
        return imtl_g(J)
    direction = np.linalg.lstsq(U, np.ones(len(J)), rcond=None)[0]
    v = np.linalg.lstsq(U.T, direction, rcond=None)[0] / s
    return v / v.sum() @ J


def config_in_fp64(J: Array) -> Array:
    """Equation 2 of the paper on J, with numpy's pseudo-inverse."""
    best = np.linalg.pinv(_unit(J)[0], rcond=1e-8) @ np.ones(len(J))
    best = best / np.linalg.norm(best)
    return (J @ best).sum() * best


def cagrad_by_cone(J: Array, c: float) -> Array:
    """The primal problem of the paper, by Clarabel."""
    scale = np.linalg.norm(J)
    J = J / scale
    g0 = J.mean(0)
    d, t = cp.Variable(J.shape[1]), cp.Variable()
    ball = cp.norm(d - g0, 2) <= c * np.linalg.norm(g0)
    tight = {"tol_gap_abs": 1e-12, "tol_gap_rel": 1e-12, "tol_feas": 1e-12}
    cp.Problem(cp.Maximize(t), [J @ d >= t, ball]).solve(cp.CLARABEL, **tight)
    return d.value * scale


def aligned_mtl(J: Array, scale: str) -> Array | None:
    """From the singular values of J; None where one of them is too small for G to show and too large to be
    0."""
    J = J / (size := np.linalg.norm(J))
    left, values, right = np.linalg.svd(J, full_matrices=False)
    if ((values > 1e-10) & (values < 1e-5)).any():
        return None
    left, values, right = left[:, values > 1e-7], values[values > 1e-7], right[values > 1e-7]
    chosen = {"min": values.min(), "median": np.sort(values)[(len(values) - 1) // 2]}
    sigma = chosen.get(scale, np.sqrt(np.mean(values**2)))
    return size * sigma * np.full(len(J), 1 / len(J)) @ left @ right
