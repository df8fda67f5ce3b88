"""Two other ways through a step: measure without touching the update, and reuse weights between solves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan, Kind, Segment
from megatron_moo.buckets.passes import Pass, scaled_passes
from megatron_moo.buckets.step import MooStep, Resolved


class ObserveStep(MooStep):
    """``--moo-observe``: Gramians, conflict and noise floor are measured, the update stays Megatron's own, bitwise.

    The rows are exchanged as always and then summed as Megatron's fp32-accumulating reduce-scatter sums them. The
    gradient buffer is not zeroed between slots, since Megatron accumulates all micro-batches of a step in it; the row
    of a slot is the difference to what had arrived before. Kept is what arrived, and the differences are taken when
    all of a bucket is there: one tensor for each earlier slot, and no row beside it.
    """

    zeroes_between_passes = False

    def begin(self, step: int) -> None:
        super().begin(step)
        self._seen: dict[str, list[torch.Tensor]] = {plan.name: [] for plan in self.plans}
        # Rows of a bucket while its own products are formed, then of its partial sums until the pass ends.
        self._rows: list[torch.Tensor] = []
        self._partial: dict[tuple[str, int], list[torch.Tensor]] = {}

    def room(self, plan: BucketPlan) -> None:
        """None: the update is written as soon as the rows are there, over what would be rows of other buckets."""

    def arrived(self, plan: BucketPlan, received: torch.Tensor) -> bool:
        if not self.is_last:
            self._seen[plan.name].append(received.clone() if plan.members == 1 else received)
            return False
        seen = [*self._seen.pop(plan.name), received]
        self._rows = [seen[0], *(after - before for before, after in pairwise(seen))]
        self._add_gramians(plan)
        for segment in plan.segments:
            if segment.kind in (Kind.PARTIAL_TP, Kind.PARTIAL_EMBD):
                cut = slice(segment.start, segment.end)
                self._partial[plan.name, segment.start] = [rows[:, cut].clone() for rows in self._rows]
        self._rows = []
        if plan.members > 1:
            with self.phases("exchange"):
                plan.own.copy_(torch.sum(received, dim=0, dtype=torch.float32))
        return True

    def _columns(self, plan: BucketPlan, segment: Segment) -> list[torch.Tensor]:
        held = self._partial.get((plan.name, segment.start))
        return [rows[:, segment.start : segment.end] for rows in self._rows] if held is None else held

    def _apply(self, coefficients: torch.Tensor, dropped: torch.Tensor) -> None:
        self._seen, self._partial = {}, {}


class AmortisedStep(MooStep):
    """``--moo-every N``: between solves each lane scales its gradient by cached weights.

    Then d = sum_k w_k g_k is what Megatron's own reduce-scatter computes, and no rows are needed; slots accumulate in
    one buffer. How old the weights are is logged as ``staleness``. What a row weighs that was not there at the solve is
    said at :class:`~megatron_moo.buckets.weights.WeightSolver`.
    """

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self._cached: torch.Tensor | None = None
        self._restored: dict[str, list[float]] | None = None
        self._solved_at = 0

    def _remember(self) -> Any:
        return super()._remember(), self._cached, self._solved_at

    def _forget(self, memory: Any) -> None:
        inner, self._cached, self._solved_at = memory
        super()._forget(inner)

    def _plan(self) -> tuple[Pass, ...]:
        if self._cached is None or self._step % self.config.every == 0:
            return super()._plan()
        return scaled_passes(self.config.slots, first=True)

    def look_ahead(self, amounts: Sequence[Sequence[float]]) -> None:
        """Learn the step's tokens per objective before its backward pass. A collective call.

        Args:
            amounts: ``[slots][micro-batches]`` tokens (or shares) of this rank.
        """
        ahead = torch.zeros(self.k, dtype=torch.float64, device=self.plans[0].grad.device)
        if self._counts_ahead:
            for slot, row in enumerate(amounts):
                ahead[self._assignment[slot][self._lane]] += sum(row)
        dist.all_reduce(ahead, group=self._world)
        per = torch.where(ahead > 0, 1.0 / ahead.clamp(min=1e-300), 0.0)
        assert self._cached is not None
        self._coefficients = self._cached * per

    def resolve(self) -> Resolved:
        if not self.now.scaled:
            resolved = super().resolve()
            # A language that was left out of this step has weight 0 in it; it may be sound in the next.
            if not bool(resolved.dropped.any()):
                self._cached, self._solved_at = self.solver.lasting, self._step
            return resolved
        assert self._cached is not None
        self.solver.changed = False
        counts, same, bad, *riders = self._reduced(
            [self._counts, self._sum.same, self._bad, *(rider() for rider in self.riders)]
        )
        # Nothing was measured in this step: the last step's Gramians, or none right after a resume.
        gramians = self._sum.gramians if self.last is None else self.last.gramians
        dropped = bad > 0
        self.last = Resolved(
            self._step,
            gramians,
            self._cached,
            counts,
            dropped,
            same,
            riders,
            self.phases,
            self._step - self._solved_at,
        )
        self._drops.count(self._step, dropped, counts)
        for call in self.on_resolved:
            call(self.last)
        return self.last

    def state_dict(self) -> dict[str, Any]:
        """The method's state and the cached weights by block name."""
        state = super().state_dict()
        if self._cached is not None:
            state["cached"] = dict(zip(self.block_names, self._cached.tolist(), strict=True))
            state["solved_at"] = self._solved_at
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; the weights are placed when the blocks are known."""
        super().load_state_dict(state)
        self._restored = state.get("cached")
        self._solved_at = state.get("solved_at", 0)

    def place(self, *args: Any, **kw: Any) -> None:
        super().place(*args, **kw)
        if self._restored is not None:
            rows = [self._restored[name] for name in self.block_names]
            self._cached = torch.tensor(rows, dtype=torch.float64, device=self.plans[0].grad.device)
            self._restored = None


def make_step_class(observe: bool, every: int) -> type[MooStep]:
    """The class for a :class:`~megatron_moo.buckets.config.MooConfig`."""
    return ObserveStep if observe else AmortisedStep if every > 1 else MooStep
