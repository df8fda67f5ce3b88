"""ConFIG: equal cosines with all rows, and the length of the rows' projections on it.

``a = pinv(C) 1``, ``v = a / s``, ``w = (1^T G v / a^T C a) v``; ``[B, K, K] -> [B, K]``. A preference vector
takes the place of the ones (times K): cosines in its proportions. Liu et al., "ConFIG: Towards conflict-free
training of physics informed neural networks", arXiv 2408.11104.

Degenerate: absent rows are left out. Where the cosines asked for are out of reach (duplicated, opposed rows)
the closest are taken. ``a = 0`` (0/0) gets weights 0, flagged ``undefined``.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .linalg import dot
from .method import Method
from .options import Spec
from .problem import Problem
from .spectrum import NOISE, Spectrum


class ConFIG(Method):
    """The conflict-free direction."""

    spec: ClassVar[Spec] = Spec(
        "config",
        "Liu et al. 2024",
        "a = pinv(C) 1, v = a / s, w = (1^T G v / a^T C a) v",
        preference=True,
    )

    def solve(self, problem: Problem) -> Tensor:
        spectrum = Spectrum(problem)
        wanted = problem.u * problem.count.unsqueeze(-1)
        a = spectrum.pinv(wanted)
        ca = spectrum.in_range(wanted)  # C a, without the rounding of a product with large a
        length2 = dot(a, ca)
        undefined = dot(ca, ca) <= NOISE**2 * dot(wanted, wanted)
        problem.flags["undefined"] = undefined.squeeze(-1) & problem.present.any(-1)
        length = dot(problem.s * problem.m, ca) / torch.where(undefined, 1.0, length2)
        return torch.where(undefined, 0.0, length * a / problem.s)
