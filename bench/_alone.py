"""What people do without Bucket-Level MOO, in one process: K whole gradients, by hand or with TorchJD."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch


class Alone:
    """A model with torch's Adam; a step computes every objective's gradient and solves for the whole model.

    ``naive`` keeps K gradients and uses our solver; ``torchjd`` is TorchJD's own MGDA on its Jacobians.
    """

    def __init__(self, name: str, args: Any, data: Iterator[dict], objectives: int) -> None:
        from megatron_moo.models.gpt import build_model
        from megatron_moo.moo import make_method

        self.model = build_model(args)
        self.model.train()
        self.params = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.params, lr=1e-3)
        self.data, self.objectives = data, objectives
        self.update = self.naive if name == "naive" else self.torchjd
        self.method = make_method("mgda")
        self.size = sum(p.numel() for p in self.params)

    def train_step(self, turn: int) -> None:
        """One step."""
        self.update()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def phase(self) -> dict[str, float]:
        """Nothing is timed inside."""
        return {}

    def loss(self) -> torch.Tensor:
        """Mean loss of the next micro-batch, by torch: Megatron's allows one backward pass only."""
        item = next(self.data)
        logits = self.model(item["tokens"], item["position_ids"], None)
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), item["labels"].flatten())

    def naive(self) -> None:
        """K backward passes, K gradients, Gramian, weights, and the weighted sum as the gradient."""
        rows = [torch.autograd.grad(self.loss(), self.params) for _ in range(self.objectives)]
        gramian = torch.zeros(self.objectives, self.objectives, dtype=torch.float64)
        for grads in zip(*rows, strict=True):
            flat = torch.stack([grad.flatten() for grad in grads])
            gramian += flat @ flat.T
        weights = self.method(gramian).tolist()
        for param, *grads in zip(self.params, *rows, strict=True):
            param.grad = sum(
                (w * g for w, g in zip(weights[1:], grads[1:], strict=True)), weights[0] * grads[0]
            )

    def torchjd(self) -> None:
        """TorchJD's backward, one row at a time, then its aggregation of ``.jac`` into ``.grad``."""
        from torchjd.aggregation import MGDA
        from torchjd.autojac import backward, jac_to_grad

        losses = [self.loss() for _ in range(self.objectives)]
        backward(losses, parallel_chunk_size=1)
        jac_to_grad(self.params, MGDA(), optimize_gramian_computation=True)
