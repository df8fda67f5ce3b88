"""MGDA: the smallest vector of the convex hull of the rows.

``w = argmin w^T G w`` over the simplex; ``[B, K, K] -> [B, K]``.
Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", C. R. Math. 350, 2012;
Sener and Koltun, arXiv 1810.04650.

The simplex is taken out: with rows of unit norm, ``q = min(s) / s`` and ``z = w s / min(s)``, the minimiser
of ``1/2 z^T (C + q q^T) z - q^T z`` over ``z >= 0`` is a multiple of the solution (along a ray, (q^T z -
1)^2 + z^T C z is smallest at a value that grows with the hull's distance alone).

Degenerate: absent rows are left out (with them the block would freeze). At a Pareto-stationary point d = 0.
Where several w give the same d (duplicates) any of them may be returned.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .method import Method
from .nnls import nnls
from .options import Spec
from .problem import Problem


def solve_mgda(problem: Problem) -> Tensor:
    """Weights ``[B, K]`` of the min-norm point of the hull of the present rows."""
    smallest = torch.where(problem.present, problem.s, torch.inf).amin(-1, keepdim=True)
    q = torch.where(problem.present, smallest / problem.s, 0.0)
    A = problem.C + q.unsqueeze(-1) * q.unsqueeze(-2)
    z = nnls(A, q, problem.present, ridge_of(problem))
    w = z * q
    return w / w.sum(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)


def ridge_of(problem: Problem) -> float:
    """What is added to a diagonal of ones to stay above the rounding of the Gramian that came in."""
    return problem.C.shape[-1] * problem.eps


def min_norm_weights(gramian: Tensor) -> Tensor:
    """MGDA's weights on the simplex, ``[..., K, K] -> [..., K]``; absent rows get 0.

    ``sqrt(w^T G w)`` is the distance of a block from Pareto stationarity.
    """
    return MGDA()(gramian)


class MGDA(Method):
    """The common descent direction that serves the worst-served objective best."""

    spec: ClassVar[Spec] = Spec(
        "mgda", "Désidéri 2012", "argmin w^T G w over the simplex", non_conflicting=True
    )

    def solve(self, problem: Problem) -> Tensor:
        return solve_mgda(problem)
