"""PCGrad ("gradient surgery"): every row loses its components against the others, one after another.

For row i: ``c = e_i``; for j in a random order of the others: ``p = (G c)_j``; if ``p < 0``: ``c_j -= p / G_jj``.
``w = sum_i c``; ``[B, K, K] -> [B, K]``. Yu et al., arXiv 2001.06782.

The order is drawn from hash(seed, step, block name, i, j), or given as ``order [B, K, K-1]``.
Degenerate: absent rows neither project nor are projected, and the order of the others stays what it was.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .draws import block_keys, project_order
from .method import Method
from .options import Option, Spec
from .problem import Problem

SEED = Option(0, "seed of the draws", low=0, high=2**31 - 1)


class PCGrad(Method):
    """Projects conflicting rows on each other's normal planes, then sums."""

    spec: ClassVar[Spec] = Spec(
        "pcgrad",
        "Yu et al. 2020",
        "sum_i of row i projected off every row that it conflicts with",
        {"seed": SEED},
        takes=("step", "block", "order"),
        random=True,
    )

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._keys: dict = {}

    def solve(self, problem: Problem) -> Tensor:
        order = problem.order
        if order is None:
            keys = block_keys(self._keys, self.options["seed"], problem.step, problem.block, problem.p)
            order = project_order(keys, problem.p.shape[-1])
        C = problem.C
        c = torch.diag_embed(problem.m)
        for j in order.unbind(-1):
            row = torch.gather(C, -2, j.unsqueeze(-1).expand_as(C))  # C[j_i], [B, K(i), K]
            p = (row * c).sum(-1)
            seen = torch.gather(problem.present, -1, j)
            c = c.scatter_add(-1, j.unsqueeze(-1), torch.where(seen, -p.clamp(max=0.0), 0.0).unsqueeze(-1))
            # Row i carries coefficients of unit rows, in units of its own norm.
        return (c * problem.s.unsqueeze(-1)).sum(-2) / problem.s
