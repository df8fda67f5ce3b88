"""CAGrad for many blocks in one launch; the twin, with the mathematics, is ``moo/cagrad.py`` and ``moo/cone.py``."""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from megatron_moo.kernels.linear_triton import (
    cholesky,
    dot,
    eliminate,
    finite,
    mtv,
    mv,
    plus_diagonal,
    problem,
    solved,
    store_flags,
)

_TINY = tl.constexpr(1e-300)


@triton.jit
def cagrad_kernel(
    gramians, preference, preference_stride, weights, flags, c,
    STEPS: tl.constexpr, ROUNDS: tl.constexpr, RIDGE: tl.constexpr, EPS: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    C, s, u, present, sound = problem(gramians, preference, preference_stride, K, KP)
    m = present.to(tl.float64)
    su = s * u
    beta = mv(C, su) * m
    radius = tl.load(c) * tl.sqrt(tl.maximum(dot(su, beta), 0.0))
    q = tl.where(present, tl.min(tl.where(present, s, float("inf")), axis=0) / s, 0.0)
    beta = beta / tl.where(radius > 0.0, radius, 1.0)
    x, y = _cone(C, beta, q, m, STEPS, RIDGE, K, KP)
    x = _on_the_support(C, beta, q, m, x, y, ROUNDS, RIDGE, K, KP)
    n = tl.sqrt(tl.maximum(dot(x, mv(C, x)), 0.0))
    count = tl.maximum(tl.sum(m, axis=0), 1.0)
    cancels = n <= 4.0 * tl.sqrt(count * EPS) * tl.sum(x, axis=0)
    share = tl.where(cancels, 0.0, radius / tl.where(cancels, 1.0, n))
    w = tl.where(present, u + share * x / s, 0.0)
    k = tl.arange(0, KP)
    tl.store(weights + tl.program_id(0).to(tl.int64) * K + k, w, mask=k < K)
    undefined = (cancels & (radius > 0.0) & (tl.sum(m, axis=0) > 0.0)).to(tl.int32)
    store_flags(flags, sound, present, undefined, K, KP)


@triton.jit
def _apply(w0, w1, eta, a0, a1):
    """``W a``."""
    p = dot(w1, a1)
    return eta * (w0 * a0 + p), eta * (a1 + w1 * (a0 + p / (1.0 + w0)))


@triton.jit
def _inverse(w0, w1, eta, a0, a1):
    """``W^{-1} a``."""
    p = dot(w1, a1)
    return (w0 * a0 - p) / eta, (a1 - w1 * (a0 - p / (1.0 + w0))) / eta


@triton.jit
def _direction(
    M, inverse, L, m, xs, w0, w1, eta, eta2, corner, column, h, qh, q, dual, primal, pairs, c0, c1
):
    """dx / x, dv, dz, ds, dt for the right-hand sides of the pairs (over x) and of the cone."""
    e0, e1 = _inverse(w0, w1, eta, c0, c1)
    e = e1 - column * (e0 / corner)
    right = solved(M, inverse, pairs + mv(L, e) * m - dual)
    dt = (primal - dot(q, right)) / qh
    dx = right + dt * h
    dv = mtv(L, dx)
    dz = e - (dv - w1 * (2.0 / (corner * eta2) * dot(w1, dv))) / eta2
    return dx / xs, dv, dz, (e0 - dot(column, dv)) / corner, dt


@triton.jit
def _inverse_reach(s, v, ds, dv, det):
    """1 / (the longest step that stays in the cone), 0 or less where there is no end to it."""
    a = ds * ds - dot(dv, dv)
    b = s * ds - dot(v, dv)
    return (-b + tl.sqrt(tl.maximum(b * b - a * det, 0.0))) / det


@triton.jit
def _reach(of_x, of_y, v, z, s, dv, dz, ds, det_s, det_z):
    pairs = tl.max(tl.maximum(-of_x, -of_y), axis=0)
    cones = tl.maximum(_inverse_reach(s, v, ds, dv, det_s), _inverse_reach(1.0, z, 0.0, dz, det_z))
    return tl.maximum(pairs, cones)


@triton.jit
def _cone(C, beta, q, m, STEPS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    """``min beta^T x + ||x||_C`` over ``x >= 0``, ``q^T x = 1``: primal x and slack y."""
    absent = 1.0 - m
    present = m > 0.0
    C = plus_diagonal(C, absent * 0.0 + RIDGE, KP)
    L = cholesky(C, RIDGE, K, KP)
    x = m / tl.sqrt(q + absent)
    x = x / tl.maximum(dot(q, x), _TINY)
    v = mtv(L, x)
    count = tl.sum(m, axis=0) + 1.0
    spread = dot(v, v) + dot(x, x) / tl.maximum(count - 1.0, 1.0)
    s = 1.5 * tl.sqrt(tl.maximum(spread, _TINY))
    t = tl.min(tl.where(present, beta / (q + absent), float("inf")), axis=0)
    t = tl.minimum(tl.maximum(t, -10.0), 10.0)
    y = m * tl.maximum(beta - t * q, 1.0)
    z = x * 0.0
    for _ in range(STEPS):
        # Nesterov and Todd's scaling W.
        nv = tl.sqrt(dot(v, v))
        nz = tl.sqrt(dot(z, z))
        det_s = tl.maximum((s - nv) * (s + nv), _TINY)
        det_z = tl.maximum((1.0 - nz) * (1.0 + nz), _TINY)
        rs = tl.sqrt(det_s)
        rz = tl.sqrt(det_z)
        s0 = s / rs
        sv = v / rs
        z0 = 1.0 / rz
        zv = z / rz
        gamma = tl.sqrt(0.5 * (1.0 + s0 * z0 + dot(sv, zv)))
        w0 = (s0 + z0) / (2.0 * gamma)
        w1 = (sv - zv) / (2.0 * gamma)
        eta2 = rs / rz
        eta = tl.sqrt(eta2)
        bend = 2.0 * w0 * w0 - 1.0
        corner = bend / eta2
        # The system in x, shared by both directions.
        xs = x + absent
        ys = y + absent
        a = mv(L, w1)
        H = C / eta2 - (2.0 / (bend * eta2)) * a[:, None] * a[None, :]
        M, inverse = eliminate(plus_diagonal(H, ys / xs + RIDGE / eta2, KP), RIDGE / eta2, K, KP)
        dual = (beta - t * q - mv(L, z) - y) * m
        primal = 1.0 - dot(q, x)
        h = solved(M, inverse, q)
        qh = tl.maximum(dot(q, h), _TINY)
        column = (-2.0 * w0 / eta2) * w1
        xy = x * y
        mu = tl.sum(xy, axis=0) + s + dot(v, z)
        l0, l1 = _apply(w0, w1, eta, 1.0, z)
        # Predictor.
        r, dv, dz, ds, dt = _direction(
            M, inverse, L, m, xs, w0, w1, eta, eta2, corner, column, h, qh, q, dual, primal, -y, -l0, -l1
        )
        step = 1.0 / tl.maximum(_reach(r, -1.0 - r, v, z, s, dv, dz, ds, det_s, det_z), 1.0)
        curl = xy * r * (1.0 + r)
        left = (1.0 - step) * mu + step * step * (dot(dv, dz) - tl.sum(curl, axis=0))
        sigma = tl.minimum(tl.maximum(left / tl.maximum(mu, _TINY), 0.0), 1.0)
        target = sigma * sigma * sigma * mu / count
        # Corrector.
        a0, a1 = _inverse(w0, w1, eta, ds, dv)
        b0, b1 = _apply(w0, w1, eta, 0.0, dz)
        r0 = target - (l0 * l0 + dot(l1, l1)) - (a0 * b0 + dot(a1, b1))
        r1 = -2.0 * l0 * l1 - (a0 * b1 + b0 * a1)
        c0 = (l0 * r0 - dot(l1, r1)) / tl.maximum(l0 * l0 - dot(l1, l1), _TINY)
        push = (curl + target * m) / xs
        r, dv, dz, ds, dt = _direction(
            M, inverse, L, m, xs, w0, w1, eta, eta2, corner, column, h, qh, q, dual, primal,
            push - y, c0, (r1 - c0 * l1) / l0,
        )  # fmt: skip
        of_y = push / ys - 1.0 - r
        reach = _reach(r, of_y, v, z, s, dv, dz, ds, det_s, det_z)
        step = tl.minimum(0.99 / tl.maximum(reach, 0.99), 1.0)
        nx = x + step * (r * xs)
        ny = y + step * (of_y * ys * m)
        nvv = v + step * dv
        nzz = z + step * dz
        ns = s + step * ds
        nt = t + step * dt
        taken = finite(tl.sum(nx + ny + nvv + nzz, axis=0) + ns + nt)
        x = tl.where(taken, nx, x)
        y = tl.where(taken, ny, y)
        v = tl.where(taken, nvv, v)
        z = tl.where(taken, nzz, z)
        s = tl.where(taken, ns, s)
        t = tl.where(taken, nt, t)
    return x, y


@triton.jit
def _worst_product(C, beta, q, m, x):
    """``min_k <g_k, d>`` in units of the smallest row for the d of x; -inf where x gives none."""
    cx = mv(C, x)
    n = tl.sqrt(tl.maximum(dot(x, cx), 0.0))
    products = (beta + cx / tl.maximum(n, _TINY)) / (q + (1.0 - m))
    worst = tl.min(tl.where(m > 0.0, products, float("inf")), axis=0)
    return tl.where(n > 0.0, worst, -float("inf"))


@triton.jit
def _on_the_support(C, beta, q, m, x, y, ROUNDS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr,
                    KP: tl.constexpr):  # fmt: skip
    """Solve exactly on the support that the interior point shows, and keep what serves the worst row best."""
    best = _worst_product(C, beta, q, m, x)
    support = (x > y).to(tl.float64) * m
    for _ in range(ROUNDS):
        A = plus_diagonal(C * support[:, None] * support[None, :], 1.0 - support, KP)
        M, inverse = eliminate(plus_diagonal(A, support * 0.0 + RIDGE, KP), RIDGE, K, KP)
        qs = q * support
        bs = beta * support
        a = solved(M, inverse, qs)
        b = solved(M, inverse, bs)
        a += solved(M, inverse, qs - mv(A, a))  # takes the ridge out again
        b += solved(M, inverse, bs - mv(A, b))
        qa = dot(qs, a)
        qb = dot(qs, b)
        root = tl.sqrt(tl.maximum(qb * qb - qa * (dot(bs, b) - 1.0), 0.0))
        t = (qb + root) / tl.maximum(qa, _TINY)
        exact = (t * a - b) * support
        kept = tl.maximum(exact, 0.0)
        value = _worst_product(C, beta, q, m, kept)
        better = finite(value) & (value >= best - 1e-14 * tl.maximum(tl.abs(best), 1.0))
        x = tl.where(better, kept, x)
        best = tl.where(better, tl.maximum(value, best), best)
        slack = beta + mv(C, exact) - t * q
        support = ((exact > 0.0) | ((slack < 0.0) & (support == 0.0))).to(tl.float64) * m
    return x
