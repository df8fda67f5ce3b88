"""FairGrad: alpha-fair shares of the improvement.

``G w = w^{-1/alpha}``, ``w > 0``: the maximum of ``sum_k <g_k, d>^{1-alpha} / (1 - alpha)`` over a ball;
``[B, K, K] -> [B, K]``. Ban and Ji, "Fair resource allocation in multi-task learning", arXiv 2402.15638.

With ``w = x / s`` on unit rows: ``y = C x``, ``x^{1/alpha} y = s^{1/alpha - 1}``, a primal-dual pair as on
the central path of an interior-point method, solved by Newton's method on the logarithm of the second
equation, a fixed number of steps within the positive orthant, on the way from alpha = 1.

Scale: d has the scale s^{(1-alpha)/(1+alpha)}, none at all for alpha = 1.
Degenerate: absent rows are left out. At Pareto-stationary points w is unbounded; a ridge at the level of
rounding (4 K eps in fp64) caps it, and the block is flagged ``capped``. Where the steps did not reach a relative
error of 1e-6 in the equation (alpha near the ends of its range and row norms a million times apart) it is
flagged ``unconverged``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .linalg import cholesky, cholesky_solve, mv, plus_diagonal
from .method import Method
from .options import Option, Spec
from .problem import Problem

_STEPS = 30
_BACK = 0.95


def solve_fair(problem: Problem, alpha: float) -> Tensor:
    """Weights ``[B, K]``; sets ``flags["capped"]`` and ``flags["unconverged"]``."""
    m, log_s = problem.m, problem.s.log()
    ridge = (problem.eps if problem.eps > 1e-10 else 4.0 * problem.eps) * problem.count
    C = plus_diagonal(problem.C, ridge.unsqueeze(-1))
    # From the bargaining solution (alpha = 1), which rows of any size do not disturb, to the alpha that is
    # wanted.
    steps = _STEPS if 0.5 <= alpha <= 2.0 else 2 * _STEPS
    x, y = torch.ones_like(log_s), torch.ones_like(log_s)
    for i in range(steps):
        a = alpha ** min(1.0, i / (0.4 * steps))
        r, of_y = _newton(C, x, y, (1.0 / a - 1.0) * log_s, a)
        r, of_y = r * m, of_y * m
        step = _BACK / torch.maximum(-r, -of_y).amax(-1, keepdim=True).clamp(min=_BACK)
        x = x * (1.0 + step * r)
        y = y * (1.0 + step * of_y)
    log_h = (1.0 / alpha - 1.0) * log_s
    left = (mv(C, x).clamp(min=1e-300).log() + x.log() / alpha - log_h).abs() * m
    problem.flags["unconverged"] = left.amax(-1) > 1e-6
    # Against orthogonal rows x grows with the power alpha / (1 + alpha) of 1 / (smallest eigenvalue met).
    growth = (x.log() * (1.0 + 1.0 / alpha) - log_h) * m
    problem.flags["capped"] = growth.amax(-1) > -(100.0 * ridge).log()
    w = torch.where(problem.present, x, 0.0) / problem.s
    return w * problem.scale.unsqueeze(-1) ** (-2.0 * alpha / (1.0 + alpha))


def _newton(C: Tensor, x: Tensor, y: Tensor, log_h: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Relative steps dx / x and dy / y, both ``[B, K]``."""
    rho = log_h - y.log() - x.log() / alpha
    H = plus_diagonal(C, y / (alpha * x))
    r = cholesky_solve(cholesky(H), y - mv(C, x) + y * rho) / x
    return r, rho - r / alpha


class FairGrad(Method):
    """Alpha-fair gradients."""

    spec: ClassVar[Spec] = Spec(
        "fairgrad",
        "Ban and Ji 2024",
        "G w = w^(-1/alpha), w > 0",
        {"alpha": Option(1.0, "the kind of fairness: 1 proportional, large max-min", low=0.1, high=10)},
        non_conflicting=True,
        scale="power (1 - alpha) / (1 + alpha)",
    )

    def solve(self, problem: Problem) -> Tensor:
        return solve_fair(problem, self.options["alpha"])
