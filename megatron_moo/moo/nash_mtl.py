"""Nash-MTL: the bargaining solution between the objectives.

``G w = 1 / w``, ``w > 0``; ``[B, K, K] -> [B, K]``. Navon et al., "Multi-task learning as a bargaining game",
arXiv 2202.01017. It is FairGrad with alpha = 1, solved exactly instead of by the paper's sequence of convex
programs.

``||d||`` is sqrt(K) whatever the gradients are; ``max_norm`` > 0 shortens d to it, as the authors' code does
(1 there).
Degenerate: as for ``fairgrad``: capped and flagged ``capped`` at Pareto-stationary points.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .fairgrad import solve_fair
from .linalg import dot, mv
from .method import Method
from .options import Option, Spec
from .problem import Problem


class NashMTL(Method):
    """The Nash bargaining solution."""

    spec: ClassVar[Spec] = Spec(
        "nash_mtl",
        "Navon et al. 2022",
        "G w = 1 / w, w > 0",
        {"max_norm": Option(0.0, "the longest d; 0: as it comes", low=0)},
        non_conflicting=True,
        scale="constant",
    )

    def solve(self, problem: Problem) -> Tensor:
        w = solve_fair(problem, 1.0)
        if self.options["max_norm"] == 0:
            return w
        own = w * problem.scale.unsqueeze(-1)
        norm = dot(own, mv(problem.G, own)).clamp(min=0.0).sqrt()
        return w * (self.options["max_norm"] / torch.where(norm > 0, norm, 1.0)).clamp(max=1.0)
