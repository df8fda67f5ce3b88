"""Small symmetric systems and Gramians in the registers of one program, in fp64.

A block's matrix is one tile ``[KP, KP]``, K <= KP <= 32, with zeros or the identity beyond K.
"""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(a, b):
    return tl.sum(a * b, axis=0)


@triton.jit
def mv(A, x):
    """``A x``."""
    return tl.sum(A * x[None, :], axis=1)


@triton.jit
def mtv(A, x):
    """``A^T x``."""
    return tl.sum(A * x[:, None], axis=0)


@triton.jit
def eye(KP: tl.constexpr):
    k = tl.arange(0, KP)
    return k[:, None] == k[None, :]


@triton.jit
def diagonal(A, KP: tl.constexpr):
    return tl.sum(tl.where(eye(KP), A, 0.0), axis=0)


@triton.jit
def plus_diagonal(A, d, KP: tl.constexpr):
    """``A + diag(d)``."""
    return A + tl.where(eye(KP), d[None, :], 0.0)


@triton.jit
def eliminate(H, floor, K: tl.constexpr, KP: tl.constexpr):
    """``M`` and ``1 / D`` with ``M H M^T = D``, M unit lower triangular: forward elimination of ``[H | I]``.

    ``H`` is positive definite but for rounding: a pivot below ``floor`` counts as ``floor``.
    """
    row = tl.arange(0, KP)[:, None]
    column = tl.arange(0, KP)[None, :]
    M = tl.where(row == column, 1.0, 0.0).to(tl.float64)
    inverse = tl.full([KP], 1.0, tl.float64)
    for j in range(K):
        pivot_row = tl.sum(tl.where(row == j, H, 0.0), axis=0)
        pivot = tl.maximum(tl.sum(tl.where(tl.arange(0, KP) == j, pivot_row, 0.0), axis=0), floor)
        factor = tl.sum(tl.where(column == j, H, 0.0), axis=1) / pivot
        factor = tl.where(tl.arange(0, KP) > j, factor, 0.0)
        H -= factor[:, None] * pivot_row[None, :]
        M -= factor[:, None] * tl.sum(tl.where(row == j, M, 0.0), axis=0)[None, :]
        inverse = tl.where(tl.arange(0, KP) == j, 1.0 / pivot, inverse)
    return M, inverse


@triton.jit
def solved(M, inverse, b):
    """``H^{-1} b`` from :func:`eliminate`."""
    return mtv(M, mv(M, b) * inverse)


@triton.jit
def cholesky(C, floor, K: tl.constexpr, KP: tl.constexpr):
    """L, lower triangular, ``L L^T = C``."""
    row = tl.arange(0, KP)[:, None]
    column = tl.arange(0, KP)[None, :]
    L = tl.where((row == column) & (row >= K), 1.0, 0.0).to(tl.float64)
    for j in range(K):
        of_column = tl.sum(tl.where(column == j, C, 0.0), axis=1)
        of_row = tl.sum(tl.where(row == j, C, 0.0), axis=0)
        pivot = tl.maximum(tl.sum(tl.where(tl.arange(0, KP) == j, of_column, 0.0), axis=0), floor)
        root = tl.sqrt(pivot)
        of_column = tl.where(tl.arange(0, KP) == j, pivot, tl.where(tl.arange(0, KP) > j, of_column, 0.0))
        L = tl.where(column == j, of_column[:, None] / root, L)
        C -= (of_column / pivot)[:, None] * tl.where(tl.arange(0, KP) > j, of_row, 0.0)[None, :]
    return L


@triton.jit
def finite(x):
    return (x - x) == 0.0


@triton.jit
def problem(gramians, preference, preference_stride, K: tl.constexpr, KP: tl.constexpr):
    """One block, cleaned as ``moo/problem.py`` cleans it.

    Returns:
        cosines C (the identity on absent rows), row norms s (1 there) in units of the largest row's power of two,
        preference u over the present rows, which rows are present, and which have no finite norm or product.
    """
    block = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, KP)
    live = k < K
    pair = live[:, None] & live[None, :]
    raw = tl.load(gramians + block * K * K + k[:, None] * K + k[None, :], mask=pair, other=0.0)
    d = diagonal(raw, KP)
    sound = finite(d) & (d >= 0.0)
    ones = sound.to(tl.int32)
    broken = (ones[:, None] * ones[None, :] == 1) & (finite(raw) == 0)
    broken_rows = tl.sum(broken.to(tl.int32), axis=0) + tl.sum(tl.trans(broken.to(tl.int32)), axis=0)
    sound = sound & (broken_rows == 0)
    present = sound & (d >= 2.2250738585072014e-308) & live
    ones = present.to(tl.int32)
    both = ones[:, None] * ones[None, :] == 1
    G = tl.where(both, raw, 0.0)
    G = 0.5 * G + 0.5 * tl.trans(G)
    largest = tl.sqrt(tl.max(tl.where(present, d, 0.0), axis=0))
    exponent = ((largest.to(tl.int64, bitcast=True) >> 52) & 0x7FF) - 1022
    exponent = tl.where(largest > 0.0, exponent, 0)
    shrink = ((1023 - exponent) << 52).to(tl.float64, bitcast=True)
    G = G * shrink * shrink  # in two steps: the square of the scale may not be a number where the scale is
    s = tl.sqrt(tl.where(present, diagonal(G, KP), 1.0))
    C = G / s[:, None] / s[None, :]
    C = tl.minimum(tl.maximum(C, -1.0), 1.0)
    C = tl.where(eye(KP), 1.0, C)
    share = tl.load(preference + block * preference_stride + k, mask=live, other=0.0)
    share = tl.where(present, share, 0.0)
    total = tl.sum(share, axis=0)
    count = tl.sum(present.to(tl.float64), axis=0)
    even = present.to(tl.float64) / tl.maximum(count, 1.0)
    u = tl.where(total > 0.0, share / tl.where(total > 0.0, total, 1.0), even)
    return C, s, u, present, sound


@triton.jit
def store_flags(flags, sound, present, undefined, K: tl.constexpr, KP: tl.constexpr):
    """Bits of every row: 1 not finite, 2 absent, 4 the block's 0/0."""
    k = tl.arange(0, KP)
    bits = tl.where(sound, 0, 1) + tl.where(present, 0, 2) + 4 * undefined
    tl.store(flags + tl.program_id(0).to(tl.int64) * K + k, bits.to(tl.int32), mask=k < K)
