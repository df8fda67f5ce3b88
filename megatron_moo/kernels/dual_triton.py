"""DualProj and UPGrad for many blocks in one launch; the twins are ``moo/dualproj.py`` and ``moo/upgrad.py``."""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201, ANN202
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from megatron_moo.kernels.linear_triton import mv, problem, store_flags
from megatron_moo.kernels.mgda_triton import nnls


@triton.jit
def dualproj_kernel(
    gramians, preference, preference_stride, weights, flags,
    STEPS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    C, s, u, present, sound = problem(gramians, preference, preference_stride, K, KP)
    m = present.to(tl.float64)
    x = _scaled(C, -mv(C, s * u) * m, m, STEPS, RIDGE, K, KP)
    k = tl.arange(0, KP)
    w = tl.where(present, u + x / s, 0.0)
    tl.store(weights + tl.program_id(0).to(tl.int64) * K + k, w, mask=k < K)
    store_flags(flags, sound, present, 0, K, KP)


@triton.jit
def upgrad_kernel(
    gramians, preference, preference_stride, weights, flags,
    STEPS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    C, s, u, present, sound = problem(gramians, preference, preference_stride, K, KP)
    m = present.to(tl.float64)
    k = tl.arange(0, KP)
    v = tl.zeros([KP], tl.float64)
    for i in range(K):
        row = tl.sum(tl.where(k[:, None] == i, C, 0.0), axis=0)
        x = _scaled(C, -row * m, m, STEPS, RIDGE, K, KP)
        share = tl.sum(tl.where(k == i, u * s, 0.0), axis=0)  # 0 for an absent row
        v += (x + tl.where(k == i, 1.0, 0.0)) * share
    tl.store(weights + tl.program_id(0).to(tl.int64) * K + k, tl.where(present, v / s, 0.0), mask=k < K)
    store_flags(flags, sound, present, 0, K, KP)


@triton.jit
def _scaled(A, b, m, STEPS: tl.constexpr, RIDGE: tl.constexpr, K: tl.constexpr, KP: tl.constexpr):
    """:func:`nnls` with ``b`` of any size."""
    size = tl.max(tl.abs(b), axis=0)
    size = tl.where(size > 0.0, size, 1.0)
    return nnls(A, b / size, m, STEPS, RIDGE, K, KP) * size
