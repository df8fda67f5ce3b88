"""MGDA for many blocks in one launch; the twin, with the mathematics, is ``moo/mgda.py`` and ``moo/nnls.py``."""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from megatron_moo.kernels.linear_triton import eliminate, mv, plus_diagonal, problem, solved, store_flags


@triton.jit
def mgda_kernel(
    gramians, preference, preference_stride, weights, flags,
    STEPS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    C, s, _, present, sound = problem(gramians, preference, preference_stride, K, KP)
    q = tl.where(present, tl.min(tl.where(present, s, float("inf")), axis=0) / s, 0.0)
    A = C + q[:, None] * q[None, :]
    x = nnls(A, q, present.to(tl.float64), STEPS, RIDGE, K, KP) * q
    total = tl.sum(x, axis=0)
    w = tl.where(present, x / tl.maximum(total, 2.2250738585072014e-308), 0.0)
    k = tl.arange(0, KP)
    tl.store(weights + tl.program_id(0).to(tl.int64) * K + k, w, mask=k < K)
    store_flags(flags, sound, present, 0, K, KP)


@triton.jit
def nnls(A, b, m, STEPS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    """``argmin_{x >= 0} 1/2 x^T A x - b^T x``: Mehrotra's predictor and corrector, a fixed number of steps."""
    absent = 1.0 - m
    count = tl.maximum(tl.sum(m, axis=0), 1.0)
    x = m
    y = m
    for _ in range(STEPS):
        xs = x + absent
        ys = y + absent
        M, inverse = eliminate(plus_diagonal(A, ys / xs + RIDGE, KP), RIDGE, K, KP)
        g = b - mv(A, x)
        r = solved(M, inverse, g) / xs
        reach = 1.0 / tl.maximum(tl.max(tl.maximum(-r, 1.0 + r), axis=0), 1.0)
        xy = x * y
        curl = xy * r * (1.0 + r)
        mu = tl.sum(xy, axis=0)
        after = (1.0 - reach) * mu - reach * reach * tl.sum(curl, axis=0)
        sigma = tl.minimum(tl.maximum(after / tl.maximum(mu, 1e-300), 0.0), 1.0)
        push = curl + (sigma * sigma * sigma * mu / count) * m
        r = solved(M, inverse, g + push / xs) / xs
        of_y = push / (xs * ys) - 1.0 - r
        reach = 0.995 / tl.maximum(tl.max(tl.maximum(-r, -of_y), axis=0), 0.995)
        x = x * (1.0 + reach * r)
        y = y * (1.0 + reach * of_y)
    return x
