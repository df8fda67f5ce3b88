"""Aligned-MTL: the rows are replaced by the closest ones with condition number 1, then averaged.

``w = sigma V diag(e^{-1/2}) V^T u`` with ``G = V diag(e) V^T`` over the e above rounding; ``sigma^2`` is
their minimum (as published), their median (the lower one) or their mean (``rmse``). ``[B, K, K] -> [B, K]``.
Senushkin et al., "Independent component alignment for multi-task learning", CVPR 2023.

Degenerate: absent rows are left out. Eigenvalues at 0 are left out, so of duplicated rows each gets half.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .linalg import eigh, mv
from .method import Method
from .options import Option, Spec
from .problem import Problem


class AlignedMTL(Method):
    """Gradient matrices with condition number 1."""

    spec: ClassVar[Spec] = Spec(
        "aligned_mtl",
        "Senushkin et al. 2023",
        "w = sigma V e^(-1/2) V^T u",
        {"scale": Option("min", "sigma^2: which of the eigenvalues", choices=("min", "median", "rmse"))},
        preference=True,
    )

    def solve(self, problem: Problem) -> Tensor:
        e, V = eigh(problem.G)
        keep = e > problem.eps * problem.count.unsqueeze(-1) * e[..., -1:]
        rank = keep.sum(-1, keepdim=True)
        k = e.shape[-1]
        if self.options["scale"] == "min":
            sigma2 = torch.where(keep, e, torch.inf).amin(-1, keepdim=True)
        elif self.options["scale"] == "median":
            sigma2 = e.gather(-1, (k - rank + (rank - 1).clamp(min=0) // 2).clamp(max=k - 1))
        else:
            sigma2 = torch.where(keep, e, 0.0).sum(-1, keepdim=True) / rank.clamp(min=1)
        sigma = torch.where(rank > 0, sigma2, 0.0).clamp(min=0.0).sqrt()
        inverse = torch.where(keep, 1.0 / torch.where(keep, e, 1.0).sqrt(), 0.0)
        return sigma * mv(V, inverse * mv(V.mT, problem.u))
