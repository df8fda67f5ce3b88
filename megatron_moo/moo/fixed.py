"""Weights given by the user: ``w = weights``, one number per objective, not normalised.

Shapes: ``[B, K, K] -> [B, K]``. Without ``weights`` the preference vector is used, which makes it ``mean``.
Absent rows get weight 0 and the others keep theirs.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .method import Method
from .options import Option, Spec
from .problem import Problem


class Fixed(Method):
    """The same weights at every step."""

    spec: ClassVar[Spec] = Spec(
        "fixed",
        "linear scalarisation",
        "w = weights",
        {
            "weights": Option(
                None,
                "one number per objective, e.g. 0.5,0.3,0.2; default: the preference",
                low=0,
                vector=True,
            )
        },
        preference=True,
        gramian=False,
        equivariant=False,
    )

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._on: dict[torch.device, Tensor] = {}

    def solve(self, problem: Problem) -> Tensor:
        weights = self.options["weights"]
        if weights is None:
            return problem.p
        if len(weights) != problem.p.shape[-1]:
            raise ValueError(f"fixed: {len(weights)} weights for {problem.p.shape[-1]} objectives")
        device = problem.p.device
        if device not in self._on:
            self._on[device] = torch.tensor(weights, dtype=torch.float64, device=device)
        return self._on[device].expand_as(problem.p)
