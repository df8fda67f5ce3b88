"""RLW, random loss weighting: ``w = softmax(z)`` with z standard normal, drawn anew at every step and block.

Shapes: ``[B, K, K] -> [B, K]``. Lin et al., "Reasonable effectiveness of random weighting", arXiv 2111.10603.
Drawn from hash(seed, step, block name). Absent rows get weight 0 and the others keep theirs.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .draws import SEED, BlockKeys, normal
from .method import Method
from .options import Spec
from .problem import Problem


class Random(Method):
    """Weights drawn from the simplex."""

    spec: ClassVar[Spec] = Spec(
        "random",
        "Lin et al. 2021 (RLW)",
        "w = softmax(z), z ~ N(0, I)",
        {"seed": SEED},
        takes=("step", "block"),
        random=True,
        gramian=False,
        equivariant=False,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.keys = BlockKeys(self.options["seed"])

    def solve(self, problem: Problem) -> Tensor:
        return normal(self.keys(problem), problem.p.shape[-1]).softmax(-1)
