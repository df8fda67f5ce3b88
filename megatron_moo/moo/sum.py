"""The sum of the rows: ``w = 1``.

Shapes: ``[B, K, K] -> [B, K]``. Absent rows get weight 0.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .method import Method
from .options import Spec
from .problem import Problem


class Sum(Method):
    """Weight 1 for every row."""

    spec: ClassVar[Spec] = Spec("sum", "linear scalarisation", "w = 1", gramian=False)

    def solve(self, problem: Problem) -> Tensor:
        return problem.m
