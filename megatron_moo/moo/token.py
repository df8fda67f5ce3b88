"""Weights by tokens: ``w_k = n_k / N``, N the tokens of all objectives.

Shapes: ``[B, K, K]`` and tokens ``[K]`` or ``[B, K]`` -> ``[B, K]``. With rows that are means over the
tokens of their objective this is the plain update of the whole batch. Absent rows get weight 0, N still
counts their tokens; without any token every weight is 0.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .method import Method
from .options import Spec
from .problem import Problem


class Token(Method):
    """The share of every objective in the tokens of the step."""

    spec: ClassVar[Spec] = Spec(
        "token", "linear scalarisation", "w_k = n_k / N", needs=("tokens",), gramian=False
    )

    def solve(self, problem: Problem) -> Tensor:
        assert problem.tokens is not None
        total = problem.tokens.sum(-1, keepdim=True)
        return torch.where(total > 0, problem.tokens / torch.where(total > 0, total, 1.0), 0.0)
