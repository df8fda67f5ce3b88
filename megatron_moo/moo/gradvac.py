"""GradVac, gradient vaccine: rows are turned towards each other until they are as similar as they usually
are.

As ``pcgrad``, but row i meets row j with a target cosine ``t_ij``, a moving average of the cosines seen so
far. With ``phi`` the cosine of the row as it is now and g_j: if ``phi < t``: ``row += |row| (t sqrt(1 -
phi^2) - phi sqrt(1 - t^2)) / (|g_j| sqrt(1 - t^2)) g_j``, after which their cosine is t; then ``t_ij += beta
(phi - t_ij)``. ``[B, K, K] -> [B, K]``. Wang et al., arXiv 2010.05874.

State: ``target [B, K, K]`` per block, 0 at the start. The order is drawn from hash(seed, step, block name)
or given.
Degenerate: absent rows take no part and leave their targets. Targets are used up to 1 - 1e-8, where the
formula has a pole. A row that was turned to 0 has cosine 0.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .draws import SEED, BlockKeys
from .method import StatefulMethod
from .options import Option, Spec
from .problem import Problem
from .state import BlockState


class GradVac(StatefulMethod):
    """Gradient surgery towards a target similarity per pair and block."""

    spec: ClassVar[Spec] = Spec(
        "gradvac",
        "Wang et al. 2021",
        "as pcgrad, towards a moving-average cosine per pair and block",
        {"beta": Option(0.5, "how fast the target cosines follow", low=0, high=1), "seed": SEED},
        takes=("step", "block", "order"),
        state=True,
        random=True,
        equivariant=False,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.keys = BlockKeys(self.options["seed"])
        self.state = BlockState("target")

    def solve(self, problem: Problem) -> Tensor:
        C, present, beta = problem.C, problem.present, self.options["beta"]
        target = self.state.read(problem, target=torch.zeros_like(C))["target"]
        c = torch.diag_embed(problem.m)
        for j in self.keys.order(problem).unbind(-1):
            at = j.unsqueeze(-1)
            cc = c @ C
            norm = (cc * c).sum(-1).clamp(min=0.0).sqrt()
            phi = (cc.gather(-1, at).squeeze(-1) / torch.where(norm > 0, norm, 1.0)).clamp(-1.0, 1.0)
            goal = target.gather(-1, at).squeeze(-1)
            t = goal.clamp(-1.0 + 1e-8, 1.0 - 1e-8)
            both = present & present.gather(-1, j)
            push = norm * (t * (1.0 - phi.square()).sqrt() / (1.0 - t.square()).sqrt() - phi)
            c = c.scatter_add(-1, at, torch.where(both & (phi < goal), push, 0.0).unsqueeze(-1))
            moved = torch.where(both, goal + beta * (phi - goal), goal)
            target = target.scatter(-1, at, moved.unsqueeze(-1))
        self.state.write(problem, target=target)
        return (c * problem.s.unsqueeze(-1)).sum(-2) / problem.s
