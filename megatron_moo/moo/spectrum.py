"""The spectrum of the cosines, with a rank that does not depend on scale, and their pseudo-inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import eigh, exact_residual, exact_root_rest, mv
from .problem import Problem

NOISE = 1e-10
"""What is left of a cancellation in fp64, relative to its terms, is taken for 0 below this."""
_REFINEMENTS = 3


class Spectrum:
    """``C = V diag(e) V^T``, ascending; ``keep`` marks the eigenvalues that rounding of the Gramian cannot
    make of 0."""

    def __init__(self, problem: Problem) -> None:
        self.values, self.vectors = eigh(problem.C)
        # Cosines are off by about eps each, their eigenvalues by K times that at most, and by eigh's own error.
        own = 10.0 * torch.finfo(torch.float64).eps * problem.count.clamp(min=4.0)
        self.keep = self.values > torch.maximum(own, problem.eps * problem.count).unsqueeze(-1)
        self._inverse = torch.where(self.keep, 1.0 / torch.where(self.keep, self.values, 1.0), 0.0)
        # Rows brought to about 1 by powers of two lose nothing; with near = s / r, C = E / (near near^T).
        r = torch.exp2(torch.round(torch.log2(problem.s)))
        self._E = problem.G / r.unsqueeze(-1) / r.unsqueeze(-2)
        self._E.diagonal(dim1=-2, dim2=-1).add_(1.0 - problem.m)
        self._near = problem.s / r
        self._near_low = exact_root_rest(self._E.diagonal(dim1=-2, dim2=-1), self._near)

    def pinv(self, x: Tensor) -> Tensor:
        """``pinv(C) x`` to the last digit that the Gramian allows.

        Eigenvalues are off by the rounding of the largest, 1e-4 of one that is 1e-12; steps of refinement
        with the residual in twice the precision take that out.
        """
        # What is refined is the z of E z = near x: y = near z, rounded once more, would bring the error
        # back, and so would a right-hand side of fp64.
        z = self._rough(x) / self._near
        for _ in range(_REFINEMENTS):
            left = exact_residual(self._E, z, x * self._near) + x * self._near_low
            z = z + self._rough(left / self._near) / self._near
        return z * self._near

    def in_range(self, x: Tensor) -> Tensor:
        """The part of ``x`` in the range of C."""
        return mv(self.vectors, mv(self.vectors.mT, x) * self.keep.to(x.dtype))

    def _rough(self, x: Tensor) -> Tensor:
        return mv(self.vectors, mv(self.vectors.mT, x) * self._inverse)
