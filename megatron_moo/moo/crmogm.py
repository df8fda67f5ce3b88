"""CR-MOGM: correction of the bias of stochastic multi-gradients by momentum on the weights.

``w_t = decay w_{t-1} + (1 - decay) w_inner`` from ``w_0`` = the first inner weights; ``[B, K, K] -> [B, K]``.
Zhou et al., "On the convergence of stochastic multi-objective gradient manipulation and beyond", NeurIPS
2022. Their decay may grow towards 1 as the learning rate falls; here it is constant. ``make_method("crmogm",
of="upgrad")`` or ``make_method("crmogm:upgrad")``.

State: the weights per block and objective. Absent rows get weight 0 and leave theirs as they are.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .options import Option, Spec
from .problem import Problem
from .smoothing import DECAY, Wrapper


class CRMOGM(Wrapper):
    """Weights with momentum, started at the first ones."""

    spec: ClassVar[Spec] = Spec(
        "crmogm",
        "Zhou et al. 2022",
        "w_t = decay w_(t-1) + (1 - decay) w of the inner method",
        {"of": Option("mgda", "the inner method; its options may be given too", text=True), "decay": DECAY},
        takes=("block",),
        state=True,
        scale="as the inner method at constant scale",
    )

    def solve(self, problem: Problem) -> Tensor:
        w = self.inner.solve(problem)
        average, mass = self.averaged(problem, w)
        # Started at 0 the average lacks decay^t w_0; the first call puts it in for all that follow.
        first = problem.present & (mass == 1.0 - self.options["decay"])
        average = torch.where(first, w, average)
        self.state.write(problem, average=average, mass=mass)
        return average
