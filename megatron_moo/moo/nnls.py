"""Batched non-negative quadratic programs by a fixed number of interior-point steps.

mgda, dualproj and upgrad are all ``min 1/2 x^T A x - b^T x`` over ``x >= 0`` with a positive semi-definite A
of about unit diagonal. Mehrotra's predictor and corrector converges in about ten steps on ordinary blocks;
the rest of the fixed number is for the ill-conditioned ones. On a CPU, where values may be looked at, most blocks
need none of them (``pivoting.py``). Mehrotra, "On the implementation of a
primal-dual interior point method", SIAM J. Optim. 2, 1992.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import cholesky, cholesky_solve, mv, plus_diagonal, ridged
from .pivoting import with_pivoting

STEPS = 20
_CACHE = 2**18
_BACK = 0.995


def nnls(A: Tensor, b: Tensor, present: Tensor, ridge: float) -> Tensor:
    """``argmin_{x >= 0} 1/2 x^T A x - b^T x``.

    Args:
        A: ``[B, K, K]`` positive semi-definite. b: ``[B, K]``, zero on absent rows.
        present: ``[B, K]`` bool; absent rows take no part, not even in the length of the steps.
        ridge: added to the diagonal where systems are solved (not to the problem): above the rounding of A.

    Returns:
        x ``[B, K]``, 0 on absent rows.
    """
    part = max(1, _CACHE // A.shape[-1] ** 2)
    if (
        A.device.type == "cpu" and A.shape[0] > part
    ):  # matrices that stay in the cache: a third faster at K = 16
        parts = zip(A.split(part), b.split(part), present.split(part), strict=True)
        return torch.cat([nnls(*each, ridge) for each in parts])
    m = present.to(A.dtype)
    size = b.abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    b = b / size

    def on_support(blocks: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        of, right = A[blocks], b[blocks]
        part_of = of * support.unsqueeze(-1) * support.unsqueeze(-2)
        L = cholesky(plus_diagonal(part_of, 1.0 - support))
        x = cholesky_solve(L, right * support)
        x = x + cholesky_solve(L, (right - mv(part_of, x)) * support)
        return x, mv(of, x) - right

    def search(blocks: Tensor) -> Tensor:
        return _interior_point(A[blocks], b[blocks], m[blocks], ridge)

    return with_pivoting(A, m, ridge, on_support, search) * size


def _interior_point(A: Tensor, b: Tensor, m: Tensor, ridge: float) -> Tensor:
    absent = 1.0 - m  # keeps quotients finite: an absent pair (x, y) stays (0, 0) and is divided by (1, 1)
    count = m.sum(-1, keepdim=True).clamp(min=1)
    shifted = ridged(A, ridge)
    x, y = m, m
    for _ in range(STEPS):
        xs, ys = x + absent, y + absent
        L = cholesky(plus_diagonal(shifted, ys / xs))
        g = b - mv(A, x)  # minus the gradient
        # Predictor. With r = dx / x the complementary pair moves by dy / y = -1 - r.
        r = cholesky_solve(L, g) / xs
        reach = 1.0 / torch.maximum(-r, 1.0 + r).amax(-1, keepdim=True).clamp(min=1.0)
        xy = x * y
        curl = xy * r * (1.0 + r)  # minus the product dx dy that the linear model leaves out
        mu = xy.sum(-1, keepdim=True)
        after = (1.0 - reach) * mu - reach.square() * curl.sum(-1, keepdim=True)
        sigma = (after / mu.clamp(min=1e-300)).clamp(0.0, 1.0) ** 3
        push = torch.addcmul(curl, sigma * mu / count, m)
        # Corrector.
        r = cholesky_solve(L, g + push / xs) / xs
        of_y = push / (xs * ys) - 1.0 - r
        reach = _BACK / torch.maximum(-r, -of_y).amax(-1, keepdim=True).clamp(min=_BACK)
        x = x * (1.0 + reach * r)
        y = y * (1.0 + reach * of_y)
    return x
