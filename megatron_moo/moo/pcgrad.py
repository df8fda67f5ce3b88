"""PCGrad ("gradient surgery"): every row loses its components against the others, one after another.

For row i: ``c = e_i``; for j in a random order of the others: ``p = (G c)_j``; if ``p < 0``: ``c_j -= p /
G_jj``. ``w = sum_i c``; ``[B, K, K] -> [B, K]``. Yu et al., arXiv 2001.06782.

The order is drawn from hash(seed, step, block name, i, j), or given as ``order [B, K, K-1]``.
Degenerate: absent rows neither project nor are projected, and the order of the others stays what it was.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .draws import SEED, BlockKeys
from .method import Method
from .options import Spec
from .problem import Problem


class PCGrad(Method):
    """Projects conflicting rows on each other's normal planes, then sums."""

    spec: ClassVar[Spec] = Spec(
        "pcgrad",
        "Yu et al. 2020",
        "sum_i of row i projected off every row that it conflicts with",
        {"seed": SEED},
        takes=("step", "block", "order"),
        random=True,
        equivariant=False,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.keys = BlockKeys(self.options["seed"])

    def solve(self, problem: Problem) -> Tensor:
        c = torch.diag_embed(problem.m)
        for j in self.keys.order(problem).unbind(-1):
            row = problem.C.gather(-2, j.unsqueeze(-1).expand_as(c))
            p = (row * c).sum(-1)
            seen = problem.present.gather(-1, j)
            c = c.scatter_add(-1, j.unsqueeze(-1), torch.where(seen, -p.clamp(max=0.0), 0.0).unsqueeze(-1))
        # c counts unit rows, and row i started at norm 1 instead of s_i.
        return (c * problem.s.unsqueeze(-1)).sum(-2) / problem.s
