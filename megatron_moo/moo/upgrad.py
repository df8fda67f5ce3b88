"""UPGrad: every row is projected onto the dual cone, then they are averaged.

``w = sum_i argmin_{v >= u_i e_i} v^T G v``; ``[B, K, K] -> [B, K]``. Quinton and Rey, arXiv 2406.16232.

Solved as ``dualproj`` with K right-hand sides per block. Row i only scales its own problem, so each is
solved for a unit row and multiplied by ``u_i s_i`` afterwards: rows of any size are as accurate as the
largest.
Degenerate: absent rows are left out. A block whose dual cone is {0} gets d = 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .method import Method
from .mgda import ridge_of
from .nnls import nnls
from .options import Spec
from .problem import Problem


class UPGrad(Method):
    """The mean of the rows' projections onto the dual cone."""

    spec: ClassVar[Spec] = Spec(
        "upgrad",
        "Quinton 2024",
        "sum_i argmin v^T G v over v >= u_i e_i",
        preference=True,
        non_conflicting=True,
    )

    def solve(self, problem: Problem) -> Tensor:
        blocks, k = problem.u.shape
        A = problem.C.repeat_interleave(k, 0)
        b = -problem.C.reshape(blocks * k, k) * problem.present.repeat_interleave(k, 0)
        x = nnls(A, b, problem.present.repeat_interleave(k, 0), ridge_of(problem)).reshape(blocks, k, k)
        share = (problem.u * problem.s).unsqueeze(-1)
        v = (x + torch.eye(k, dtype=x.dtype, device=x.device)) * share
        return v.sum(-2) / problem.s
