"""Eigenvalues with a rank that does not depend on scale, and the pseudo-inverse made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from .linalg import eigh, mv
from .problem import Problem

NOISE = 1e-10
"""What is left of a cancellation in fp64, relative to its terms, is taken for 0 below this."""


class Spectrum:
    """``A = V diag(e) V^T``, ascending; ``keep`` marks the eigenvalues above the rounding of the Gramian.

    Args:
        A: ``[B, K, K]`` symmetric. tolerance: what counts as 0, in units of (present rows) x eps x the
            largest.
    """

    def __init__(self, A: Tensor, problem: Problem, tolerance: float = 10.0) -> None:
        self.values, self.vectors = eigh(A)
        largest = self.values[..., -1:]
        self.keep = self.values > tolerance * problem.eps * problem.count.unsqueeze(-1) * largest
        self.safe = torch.where(self.keep, self.values, 1.0)

    def of(self, function: Tensor, x: Tensor) -> Tensor:
        """``V diag(function) V^T x`` over the kept eigenvalues."""
        inner = mv(self.vectors.mT, x) * torch.where(self.keep, function, 0.0)
        return mv(self.vectors, inner)

    def pinv(self, x: Tensor) -> Tensor:
        """``pinv(A) x``."""
        return self.of(1.0 / self.safe, x)
