"""FairGrad: alpha-fair shares of the improvement.

``G w = w^{-1/alpha}``, ``w > 0``: the maximum of ``sum_k <g_k, d>^{1-alpha} / (1 - alpha)`` over a ball;
``[B, K, K] -> [B, K]``. Ban and Ji, "Fair resource allocation in multi-task learning", arXiv 2402.15638.

With ``w = x / s`` on unit rows: ``y = C x``, ``x^{1/alpha} y = s^{1/alpha - 1}``, a primal-dual pair as on
the central path of an interior-point method, solved by Newton's method on the logarithm of the second
equation, a fixed number of steps within the positive orthant.

Scale: d has the scale s^{(1-alpha)/(1+alpha)}, none at all for alpha = 1.
Degenerate: absent rows are left out. At Pareto-stationary points w is unbounded; a ridge at the level of
rounding (4 K eps) caps it, and the block is flagged ``capped``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .linalg import cholesky, cholesky_solve, mv, plus_diagonal, ridged
from .method import Method
from .options import Option, Spec
from .problem import Problem

_STEPS = 30
_BACK = 0.95


def solve_fair(problem: Problem, alpha: float) -> Tensor:
    """Weights ``[B, K]``; sets ``flags["capped"]``."""
    m, s = problem.m, problem.s
    ridge = 4.0 * s.shape[-1] * problem.eps
    C = ridged(problem.C, ridge)
    log_h = (1.0 / alpha - 1.0) * s.log()
    start = (alpha / (1.0 + alpha) * log_h).exp()  # the solution if the rows were orthogonal
    x, y = start, start
    for _ in range(_STEPS):
        gap = y - mv(C, x)
        rho = log_h - y.log() - x.log() / alpha
        # The right-hand side of absent rows is 0: they were solved from the start.
        dx = cholesky_solve(cholesky(plus_diagonal(C, y / (alpha * x))), (gap + y * rho) * m)
        r = dx / x
        of_y = (rho - r / alpha) * m
        step = _BACK / torch.maximum(-r, -of_y).amax(-1, keepdim=True).clamp(min=_BACK)
        x = x * (1.0 + step * r)
        y = y * (1.0 + step * of_y)
    # x / start has the power alpha / (1 + alpha) of 1 / (the smallest distance seen): compare with the
    # ridge's own.
    ratio = (x / start).log().amax(-1) * (1.0 + 1.0 / alpha)
    problem.flags["capped"] = ratio > -torch.log(torch.tensor(100.0 * ridge, dtype=x.dtype, device=x.device))
    w = torch.where(problem.present, x, 0.0) / s
    return w * problem.scale.unsqueeze(-1) ** (-2.0 * alpha / (1.0 + alpha))


class FairGrad(Method):
    """Alpha-fair gradients."""

    spec: ClassVar[Spec] = Spec(
        "fairgrad",
        "Ban and Ji 2024",
        "G w = w^(-1/alpha), w > 0",
        {"alpha": Option(1.0, "the kind of fairness: 1 proportional, large max-min", low=0.01, high=100)},
        non_conflicting=True,
        scale="power (1 - alpha) / (1 + alpha)",
    )

    def solve(self, problem: Problem) -> Tensor:
        return solve_fair(problem, self.options["alpha"])
