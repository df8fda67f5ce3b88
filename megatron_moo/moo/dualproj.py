"""DualProj: the mean row projected onto the dual cone ``{d: J d >= 0}``.

``w = argmin_{v >= u} v^T G v``; ``[B, K, K] -> [B, K]``. Proposed (and named) as a baseline in Quinton and
Rey, arXiv 2406.16232; the projection of Lopez-Paz and Ranzato's GEM, arXiv 1706.08840.

Solved for ``x = s (v - u) >= 0`` on unit rows: ``1/2 x^T C x + (U g_0)^T x``.
Degenerate: absent rows are left out. A block whose dual cone is {0} gets d = 0.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from .method import Method
from .mgda import ridge_of
from .nnls import nnls
from .options import Spec
from .problem import Problem


class DualProj(Method):
    """The non-conflicting vector closest to the mean."""

    spec: ClassVar[Spec] = Spec(
        "dualproj",
        "Lopez-Paz 2017, Quinton 2024",
        "argmin v^T G v over v >= u",
        preference=True,
        non_conflicting=True,
    )

    def solve(self, problem: Problem) -> Tensor:
        b = -(problem.C @ (problem.s * problem.u).unsqueeze(-1)).squeeze(-1) * problem.m
        return problem.u + nnls(problem.C, b, problem.present, ridge_of(problem)) / problem.s
