"""``--moo-mixed``: languages mixed inside micro-batches and Megatron's own mean, the standard baseline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.passes import Pass, scaled_passes
from megatron_moo.buckets.step import MooStep, Resolved
from megatron_moo.errors import MooError

# Our other flags that say something about gradients of single languages, with the value that says nothing.
_NEEDS_LANGUAGES: tuple[tuple[str, Any], ...] = (
    ("moo_observe", False), ("moo_every", 1), ("moo_rescale", "none"), ("moo_exclude", None), ("moo_recompute", 0),
    ("moo_metric", "euclidean"), ("moo_wire", "fp32"), ("moo_wire_feedback", False),
    ("moo_strength", "1"),
)  # fmt: skip


def mixed_config(args: Any) -> MooConfig:
    """Settings of a run that mixes languages: one pass a step, the update left to Megatron.

    Raises:
        MooError: for a method or flag that needs one language per micro-batch.
    """
    if args.moo_method != "mean":
        raise MooError(
            f"{args.moo_method} needs one language per micro-batch",
            "--moo-mixed",
            "use --moo-method mean, or leave the languages apart",
        )
    for name, nothing in _NEEDS_LANGUAGES:
        if getattr(args, name, nothing) != nothing:
            flag = f"--{name.replace('_', '-')}"
            raise MooError(f"{flag} needs one language per micro-batch", "--moo-mixed", f"remove {flag}")
    return MooConfig(method="mean", slots=1, seed=args.seed, observe=True)


class MixedStep(MooStep):
    """A step in which Megatron's reduce-scatter and mean run untouched: no rows, no Gramians, losses only."""

    def _plan(self) -> tuple[Pass, ...]:
        return scaled_passes(1, first=True)

    def reduce_scaled(self, plan: BucketPlan, reduce: Callable[[], Any]) -> Any:
        """Megatron's own reduce-scatter."""
        return reduce()

    def resolve(self) -> Resolved:
        """Sum what others asked for. A collective call.

        Raises:
            MooError: for a loss that is not finite; without rows its language cannot be left out.
        """
        riders = self._reduced([rider() for rider in self.riders])
        if not all(bool(torch.isfinite(rider).all()) for rider in riders):
            raise MooError(
                "the loss is not finite, and mixed languages cannot be told apart",
                f"step {self._step}",
                "lower the learning rate or look at the data",
            )
        device = self.plans[0].grad.device
        nothing = torch.zeros(self.k, dtype=torch.float64, device=device)
        self.last = Resolved(
            step=self._step,
            gramians=nothing.new_zeros(len(self.block_names), self.k, self.k),
            weights=nothing.new_zeros(len(self.block_names), self.k),
            counts=nothing,
            dropped=nothing.bool(),
            same=nothing.new_zeros(self.k, 3),
            riders=riders,
            phases=self.phases,
        )
        for call in self.on_resolved:
            call(self.last)
        return self.last
