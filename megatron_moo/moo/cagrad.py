"""CAGrad: the worst-served objective's best direction within a ball around the mean.

``max_d min_k <g_k, d>`` subject to ``||d - g_0|| <= c ||g_0||``; dual: ``o = argmin o^T G u + c ||g_0|| ||J^T o||`` over
the simplex, ``w = u + c ||g_0|| / ||J^T o|| o``; ``[B, K, K] -> [B, K]``. Liu et al., arXiv 2110.14048.

Degenerate: absent rows are left out. Where ``J^T o = 0`` (0/0) d = g_0, flagged ``undefined``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .method import Method
from .mgda import ridge_of
from .nnls import nnls
from .options import Option, Spec
from .problem import Problem


class CAGrad(Method):
    """Conflict-averse gradient descent."""

    spec: ClassVar[Spec] = Spec(
        "cagrad",
        "Liu et al. 2021",
        "argmin o^T G u + c |g_0| |J^T o| over the simplex; w = u + c |g_0| / |J^T o| o",
        {"c": Option(0.5, "radius of the ball as a share of the mean's norm", low=0, high=1, open_high=True)},
        preference=True,
    )

    def solve(self, problem: Problem) -> Tensor:
        C, present = problem.C, problem.present
        beta = (C @ (problem.s * problem.u).unsqueeze(-1)).squeeze(-1) * problem.m
        radius = self.options["c"] * (problem.s * problem.u * beta).sum(-1, keepdim=True).clamp(min=0).sqrt()
        smallest = torch.where(present, problem.s, torch.inf).amin(-1, keepdim=True)
        q = torch.where(present, smallest / problem.s, 0.0)
        ratio = torch.where(present, beta / torch.where(present, q, 1.0), torch.inf)
        t = ratio.amin(-1, keepdim=True) + radius / q.square().sum(-1, keepdim=True).sqrt().clamp(min=1e-300)
        for _ in range(8):
            x = nnls(C, t * q - beta, present, ridge_of(problem), steps=20)
            n = (x * (C @ x.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True).clamp(min=0).sqrt()
            slope = (q * x).sum(-1, keepdim=True) / n.clamp(min=1e-300)
            t = t + (radius - n) / slope.clamp(min=1e-300)
        return problem.u + x * radius / n.clamp(min=1e-300) / problem.s
