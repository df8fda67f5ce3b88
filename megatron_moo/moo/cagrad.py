"""CAGrad: the worst-served objective's best direction within a ball around the mean.

``max_d min_k <g_k, d>`` subject to ``||d - g_0|| <= c ||g_0||`` with ``g_0 = J^T u``; dual: ``o = argmin o^T
G u + c ||g_0|| ||J^T o||`` over the simplex, ``w = u + c ||g_0|| / ||J^T o|| o``; ``[B, K, K] -> [B, K]``.
Liu et al., arXiv 2110.14048.

On unit rows (``x = s o``, ``beta = U g_0 / (c ||g_0||)``) this is the program of ``cone.py``; the support that
it shows is then solved exactly: with the rows of the support at equal products t, ``||J^T x||`` = 1 is a
quadratic equation in t. Two rows need no search for it, nor do most blocks on a CPU (``pivoting.py``).

Degenerate: absent rows are left out. Where ``J^T o = 0`` (0/0: some rows cancel, and no direction of the
ball serves them) d = g_0, flagged ``undefined``. With g_0 = 0 the ball is a point and d = 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .cone import Program, solve_cone
from .linalg import cholesky, dot, mv, ridged
from .method import Method
from .mgda import ridge_of
from .options import Option, Spec
from .pivoting import with_pivoting
from .problem import Problem

_STEPS = 15
_ROUNDS = 2


class CAGrad(Method):
    """Conflict-averse gradient descent."""

    spec: ClassVar[Spec] = Spec(
        "cagrad",
        "Liu et al. 2021",
        "o = argmin o^T G u + c |g_0| |J^T o| over the simplex, w = u + c |g_0| / |J^T o| o",
        {"c": Option(0.5, "radius of the ball as a share of the mean's norm", low=0, high=1, open_high=True)},
        preference=True,
    )

    def solve(self, problem: Problem) -> Tensor:
        su = problem.s * problem.u
        beta = mv(problem.C, su) * problem.m
        radius = self.options["c"] * dot(su, beta).clamp(min=0.0).sqrt()
        smallest = torch.where(problem.present, problem.s, torch.inf).amin(-1, keepdim=True)
        q = torch.where(problem.present, smallest / problem.s, 0.0)
        beta = beta / torch.where(radius > 0, radius, 1.0)
        program = Program(problem.C, beta, q, problem.m, ridge_of(problem))
        x = _solve(program)
        n = dot(x, mv(problem.C, x)).clamp(min=0.0).sqrt()
        # Below the rounding of G the rows of x cancel, and the direction of their sum is noise.
        cancels = n <= 4.0 * (problem.count.unsqueeze(-1) * problem.eps) ** 0.5 * x.sum(-1, keepdim=True)
        problem.flags["undefined"] = (cancels & (radius > 0)).squeeze(-1) & problem.present.any(-1)
        share = torch.where(cancels, 0.0, radius / torch.where(cancels, 1.0, n))
        return problem.u + share * x / problem.s


def _solve(program: Program) -> Tensor:
    """x ``[B, K]`` with ``||J^T x||`` = 1, or what cancels."""

    def at(blocks: Tensor) -> Program:
        return Program(
            program.C[blocks], program.beta[blocks], program.q[blocks], program.m[blocks], program.ridge
        )

    def on_support(blocks: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
        of = at(blocks)
        x, t = _exact(of, support)
        cx = mv(of.C, x)
        slack = (of.beta + cx - t * of.q) / of.beta.abs().amax(-1, keepdim=True).clamp(min=1.0)
        return x, torch.where((dot(x, cx) - 1.0).abs() <= 1e-9, slack, -torch.inf)

    def search(blocks: Tensor) -> Tensor:
        of = at(blocks)
        k = of.C.shape[-1]
        x, y = _start_of_two(of) if k == 2 else solve_cone(of, _STEPS + k // 4)
        return _on_the_support(of, x, y)

    return with_pivoting(program.C, program.m, program.ridge, on_support, search)


def _start_of_two(program: Program) -> tuple[Tensor, Tensor]:
    """A pair of rows has three supports: both, then what is left after a wrong sign. No search is needed."""
    x = program.m / (program.q + (1.0 - program.m))
    return x, torch.zeros_like(x)


def _on_the_support(program: Program, x: Tensor, y: Tensor) -> Tensor:
    """Solve exactly on the support that the interior point shows, and keep what serves the worst row best."""
    best = _worst_product(program, x)
    support = (x > y).to(x.dtype) * program.m
    for _ in range(_ROUNDS):
        exact, t = _exact(program, support)
        kept = exact.clamp(min=0.0)
        value = _worst_product(program, kept)
        better = value.isfinite() & (value >= best - 1e-14 * best.abs().clamp(min=1.0))
        x, best = torch.where(better, kept, x), torch.where(better, torch.maximum(value, best), best)
        slack = program.beta + mv(program.C, exact) - t * program.q
        support = ((exact > 0) | ((slack < 0) & (support == 0))).to(x.dtype) * program.m
    return x


def _exact(program: Program, support: Tensor) -> tuple[Tensor, Tensor]:
    """x ``[B, K]`` with that support and its rows at equal products t ``[B, 1]``; signs are not looked at."""
    A = program.C * support.unsqueeze(-1) * support.unsqueeze(-2)
    A.diagonal(dim1=-2, dim2=-1).add_(1.0 - support)
    F = cholesky(ridged(A, program.ridge))
    q, beta = program.q * support, program.beta * support
    right = torch.stack([q, beta], -1)
    both = torch.cholesky_solve(right, F)
    both = both + torch.cholesky_solve(right - A @ both, F)  # takes the ridge out again
    a, b = both.unbind(-1)
    qa, qb, bb = dot(q, a), dot(q, b), dot(beta, b)
    t = (qb + (qb.square() - qa * (bb - 1.0)).clamp(min=0.0).sqrt()) / qa.clamp(min=1e-300)
    return (t * a - b) * support, t


def _worst_product(program: Program, x: Tensor) -> Tensor:
    """``min_k <g_k, d>`` in units of the smallest row for the d of x, ``[B, 1]``; -inf where x gives none."""
    cx = mv(program.C, x)
    n = dot(x, cx).clamp(min=0.0).sqrt()
    products = (program.beta + cx / n.clamp(min=1e-300)) / (program.q + (1.0 - program.m))
    worst = torch.where(program.m > 0, products, torch.inf).amin(-1, keepdim=True)
    return torch.where(n > 0, worst, -torch.inf)
