"""SDMGrad: a stochastic step of MGDA, drawn towards a preferred direction.

``min ||J^T z||^2 / 2 + lam <J^T z, J^T u>`` over the simplex by momentum steps on the unbiased gradient ``A
(z + lam u)`` with ``A = J_1 J_2^T`` of two independent batches; ``w = (z + lam u) / (1 + lam)``; ``[B, K, K]
-> [B, K]``. Xiao, Ban and Ji, "Direction-oriented multi-objective learning", arXiv 2305.18409. As in the
authors' code A is divided by the square of the rows' mean norm, which makes the step free of scale.

State: ``z [B, K]`` per block, u at the start. Without ``cross=`` the Gramian itself is used: the same
problem, with the bias of one batch.
Degenerate: absent rows are left out; those present are projected onto their own simplex.
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


class SDMGrad(StatefulMethod):
    """Stochastic direction-oriented multi-objective gradient descent."""

    spec: ClassVar[Spec] = Spec(
        "sdmgrad",
        "Xiao et al. 2023",
        "z by simplex-projected momentum steps on A (z + lam u), w = (z + lam u) / (1 + lam)",
        {
            "lam": Option(0.3, "pull towards the preferred direction", low=0),
            "lr": Option(10.0, "size of an inner step", low=0, open_low=True),
            "momentum": Option(0.5, "momentum of the inner steps", low=0, high=1, open_high=True),
            "iters": Option(20, "inner steps a call", low=1, high=1000),
        },
        takes=("cross", "block"),
        preference=True,
        state=True,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state = BlockState("z")

    def solve(self, problem: Problem) -> Tensor:
        A = problem.G if problem.cross is None else problem.cross
        norms = A.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt() * problem.m
        mean = norms.sum(-1, keepdim=True) / problem.count.unsqueeze(-1)
        A = A / torch.where(mean > 0, mean, 1.0).square().unsqueeze(-1)
        lam, momentum, lr = (self.options[name] for name in ("lam", "momentum", "lr"))
        before = self.state.read(problem, z=problem.u)["z"]
        z = project(before, problem.present)
        velocity = torch.zeros_like(z)
        for _ in range(self.options["iters"]):
            velocity = momentum * velocity + mv(A, z + lam * problem.u)
            z = project(z - lr * velocity, problem.present)
        self.state.write(problem, z=torch.where(problem.present, z, before))
        return (z + lam * problem.u) / (1.0 + lam)
