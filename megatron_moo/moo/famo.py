"""FAMO: equal relative progress of the losses, without gradients per objective.

``z = softmax(xi)``; d is the gradient of ``c sum_k z_k log loss_k``, so ``w_k = c z_k / loss_k`` with ``c =
1 / sum_k z_k / loss_k`` (the weights sum to 1). After the step: ``xi <- xi - lr (J_z^T delta + decay xi)``
with ``delta_k = log loss_k (before) - log loss_k (now)`` and J_z the Jacobian of the softmax. Losses ``[K]``
or ``[B, K]`` -> ``[B, K]``. Liu, Feng, Stone and Liu, "FAMO: fast adaptive multitask optimization", arXiv
2306.03792.

A baseline: the Gramian only tells which rows are there. ``delta`` compares the losses of two calls, each on
its own batch (the paper reads the same batch twice). State: ``xi`` and the last ``log_loss`` (NaN before the
first), per block.
Degenerate: absent rows, and losses that are not positive and finite, are left out and keep their state.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .linalg import dot
from .method import StatefulMethod
from .options import Option, Spec
from .problem import Problem
from .state import BlockState


class FAMO(StatefulMethod):
    """Fast adaptive multitask optimisation."""

    spec: ClassVar[Spec] = Spec(
        "famo",
        "Liu et al. 2023",
        "w ~ softmax(xi) / loss; xi follows the relative decrease of the losses",
        {
            "lr": Option(0.025, "step of xi", low=0, open_low=True),
            "decay": Option(0.001, "pull of xi towards 0", low=0),
        },
        needs=("losses",),
        takes=("block",),
        state=True,
        gramian=False,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state = BlockState("xi", "log_loss")

    def solve(self, problem: Problem) -> Tensor:
        assert problem.losses is not None
        usable = problem.present & problem.losses.isfinite() & (problem.losses > 0)
        now = torch.where(usable, problem.losses, 1.0).log()
        old = self.state.read(problem, xi=torch.zeros_like(now), log_loss=torch.full_like(now, torch.nan))
        xi, before = old["xi"], old["log_loss"]
        compared = usable & before.isfinite()
        delta = torch.where(compared, before - now, 0.0)
        z = _softmax(xi, compared)
        gradient = z * (delta - dot(z, delta)) + self.options["decay"] * xi
        xi = torch.where(compared, xi - self.options["lr"] * gradient, xi)
        self.state.write(problem, xi=xi, log_loss=torch.where(usable, now, before))
        # z / loss as one softmax: c cancels, and no loss is too small.
        return _softmax(xi - now, usable)


def _softmax(x: Tensor, usable: Tensor) -> Tensor:
    """Softmax over the usable entries; 0 elsewhere, also where none is."""
    top = torch.where(usable, x, -torch.inf).amax(-1, keepdim=True)
    e = torch.where(usable, (x - torch.where(top.isfinite(), top, 0.0)).exp(), 0.0)
    return e / e.sum(-1, keepdim=True).clamp(min=torch.finfo(e.dtype).tiny)
