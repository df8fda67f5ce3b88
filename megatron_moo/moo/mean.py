"""The mean of the rows: ``w = p``, with p = 1/K by default.

Shapes: ``[B, K, K] -> [B, K]``. It equals the plain data-parallel update when every objective has the same
number of tokens. Absent rows get weight 0 and the others keep theirs: nothing is renormalised.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .method import Method
from .options import Spec
from .problem import Problem


class Mean(Method):
    """Equal weights, or the preference vector as it is."""

    spec: ClassVar[Spec] = Spec(
        "mean", "linear scalarisation", "w = p", preference=True, gramian=False, equivariant=True
    )

    def solve(self, problem: Problem) -> Tensor:
        return problem.p
