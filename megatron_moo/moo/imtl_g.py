"""IMTL-G: the combination with equal projections on all rows.

``v = pinv(G) s``, ``w = v / sum(v)``; ``[B, K, K] -> [B, K]``. Liu et al., "Towards impartial multi-task
learning", ICLR 2021.

``pinv(G)`` is not taken of G, whose rows may have norms a million apart: with ``C = V diag(e) V^T`` the null
space of G is ``S^{-1} N`` (N the null vectors of C), and ``v = R S^{-1} pinv(C) S^{-1} R s`` with R the
projection off it.

Degenerate: absent rows are left out. When no combination has the same projection on every row, ``R s`` takes
the place of s, as the pseudo-inverse has it. ``R s = 0`` (two opposed rows) or ``sum(v) = 0`` is 0/0:
weights 0, flagged ``undefined``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .linalg import dot, mv
from .method import Method
from .options import Spec
from .problem import Problem
from .spectrum import NOISE, Spectrum


class IMTLG(Method):
    """Impartial multi-task learning, the gradient half."""

    spec: ClassVar[Spec] = Spec("imtl_g", "Liu et al. 2021", "v = pinv(G) s, w = v / sum(v)")

    def solve(self, problem: Problem) -> Tensor:
        spectrum = Spectrum(problem)
        s, m = problem.s, problem.m
        # Null vectors come first in ascending order, so the leading columns of Q span exactly S^{-1} N.
        null = torch.where(spectrum.keep.unsqueeze(-2), 0.0, spectrum.vectors) / s.unsqueeze(-1)
        Q = torch.linalg.qr(null).Q * (~spectrum.keep).to(null.dtype).unsqueeze(-2)

        def off_null(v: Tensor) -> Tensor:
            v = v - mv(Q, mv(Q.mT, v))
            return (v - mv(Q, mv(Q.mT, v))) * m

        target = off_null(s * m)
        v = off_null(spectrum.pinv(target / s) / s)
        total = v.sum(-1, keepdim=True)
        nothing = dot(target, target) <= NOISE**2 * dot(s * m, s * m)
        undefined = nothing | (total.abs() <= NOISE * v.abs().sum(-1, keepdim=True))
        problem.flags["undefined"] = undefined.squeeze(-1) & problem.present.any(-1)
        return torch.where(undefined, 0.0, v / torch.where(undefined, 1.0, total))
