"""MoDo: multi-objective gradients with double sampling.

``w <- project(w - gamma (A w + rho w))`` onto the simplex, one step a call, with ``A = J_1 J_2^T`` of two
independent batches; ``[B, K, K] -> [B, K]``. Chen, Fernando et al., "Three-way trade-off in multi-objective
learning", JMLR 25, 2024.

State: ``w [B, K]`` per block, u at the start. Without ``cross=`` the Gramian itself is used, with the bias
of one batch.
As published the step is not free of scale: gamma multiplies A. ``normalize=unit`` makes it so.
Degenerate: absent rows are left out and keep their state.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .linalg import mv
from .method import StatefulMethod
from .options import Option, Spec
from .problem import Problem
from .simplex import project
from .state import BlockState


class MoDo(StatefulMethod):
    """Dynamic weights from two independent batches."""

    spec: ClassVar[Spec] = Spec(
        "modo",
        "Chen et al. 2024",
        "w <- project(w - gamma (A w + rho w))",
        {
            "gamma": Option(0.1, "step of the weights", low=0, open_low=True),
            "rho": Option(0.1, "pull towards equal weights", low=0),
        },
        takes=("cross", "block"),
        preference=True,
        state=True,
        scale="as published not free of scale (gamma multiplies A)",
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state = BlockState("w")

    def solve(self, problem: Problem) -> Tensor:
        A = problem.G if problem.cross is None else problem.cross
        before = self.state.read(problem, w=problem.u)["w"]
        w = project(before, problem.present)
        gradient = mv(A, w) * problem.scale.square().unsqueeze(-1) + self.options["rho"] * w
        w = project(w - self.options["gamma"] * gradient, problem.present)
        self.state.write(problem, w=torch.where(problem.present, w, before))
        return w
