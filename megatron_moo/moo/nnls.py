"""Batched non-negative quadratic programs by a fixed number of interior-point steps.

mgda, dualproj and upgrad are all ``min 1/2 x^T A x - b^T x`` over ``x >= 0`` with a positive semi-definite A of unit
diagonal. Mehrotra's predictor and corrector converges in about ten steps on ordinary blocks; the rest of the fixed
number is for the ill-conditioned ones, and costs nothing but time on the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import cholesky, cholesky_solve

STEPS = 24
_BACK = 0.995


def nnls(A: Tensor, b: Tensor, present: Tensor, ridge: float, steps: int = STEPS) -> Tensor:
    """``argmin_{x >= 0} 1/2 x^T A x - b^T x``.

    Args:
        A: ``[B, K, K]`` positive semi-definite. b: ``[B, K]``, zero on absent rows.
        present: ``[B, K]`` bool; absent rows take no part, not even in the length of the steps.
        ridge: added to the diagonal where systems are solved (not to the problem): above the rounding of A.

    Returns:
        x ``[B, K]``, 0 on absent rows.
    """
    m = present.to(A.dtype)
    count = m.sum(-1, keepdim=True).clamp(min=1)
    size = b.abs().amax(-1, keepdim=True)
    size = torch.where(size > 0, size, 1.0)
    b = b / size
    x, y = m.clone(), m.clone()
    for _ in range(steps):
        xs, ys = torch.where(present, x, 1.0), torch.where(present, y, 1.0)
        residual = ((A @ x.unsqueeze(-1)).squeeze(-1) - b - y) * m
        mu = (x * y).sum(-1, keepdim=True) / count
        d = ys / xs
        L = cholesky(A + torch.diag_embed(d + ridge))
        dx = cholesky_solve(L, (-residual - y) * m)
        dy = (-y - d * dx) * m
        step = _to_the_boundary(x, y, dx, dy, present)
        after = ((x + step * dx) * (y + step * dy)).sum(-1, keepdim=True) / count
        sigma = (after / mu.clamp(min=1e-300)).clamp(0, 1) ** 3
        push = (sigma * mu - dx * dy) / xs * m
        dx = cholesky_solve(L, (-residual - y + push) * m)
        dy = (-y - d * dx + push) * m
        step = (_BACK * _to_the_boundary(x, y, dx, dy, present)).clamp(max=1.0)
        x = torch.where(present, (x + step * dx).clamp(min=1e-150), 0.0)
        y = torch.where(present, (y + step * dy).clamp(min=1e-150), 0.0)
    return x * size


def _to_the_boundary(x: Tensor, y: Tensor, dx: Tensor, dy: Tensor, present: Tensor) -> Tensor:
    """The longest step in [0, 1/0.995] that keeps x and y from becoming negative, ``[B, 1]``."""
    limit = 1.0 / _BACK
    of_x = torch.where(present & (dx < 0), -x / torch.where(dx < 0, dx, -1.0), limit)
    of_y = torch.where(present & (dy < 0), -y / torch.where(dy < 0, dy, -1.0), limit)
    return torch.minimum(of_x, of_y).amin(-1, keepdim=True).clamp(max=limit)
