"""EMA: the moving average of another method's weights, per block, free of the bias of its start.

``a <- decay a + (1 - decay) w_inner`` from 0, ``w = a / (1 - decay^t)``; ``[B, K, K] -> [B, K]``. The
averaging of Adam's moments (Kingma and Ba, arXiv 1412.6980) on the weights of any method:
``make_method("ema", of="cagrad", c=0.4)`` or ``make_method("ema:cagrad")``.

State: the average and its mass per block and objective. Absent rows get weight 0 and leave their average as
it is.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from .options import Option, Spec
from .problem import Problem
from .smoothing import DECAY, Wrapper


class EMA(Wrapper):
    """Smoothed weights, all past calls counted by their age."""

    spec: ClassVar[Spec] = Spec(
        "ema",
        "Kingma and Ba 2014 (the average)",
        "w = bias-corrected moving average of the inner method's weights",
        {"of": Option("cagrad", "the inner method; its options may be given too", text=True), "decay": DECAY},
        takes=("block",),
        state=True,
        scale="as the inner method at constant scale",
    )

    def solve(self, problem: Problem) -> Tensor:
        average, mass = self.averaged(problem, self.inner.solve(problem))
        self.state.write(problem, average=average, mass=mass)
        return average / torch.where(mass > 0, mass, 1.0)
