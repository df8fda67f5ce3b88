"""Where rows wait for the weights: one bucket further down in the gradient buffer, so that nothing is copied.

    gradient buffer   |  bucket 0  |  bucket 1  |  bucket 2  | ...      exchanged in this order
    rows              0 -> spare      1 -> 0       2 -> 1               received right where they stay

A bucket is dead once it was exchanged, so the rows of the next one are received over it. Only the first buckets need
room of their own: as many as the largest bucket has values. The update of a bucket is written into the bucket itself,
over rows of later ones, so updates are combined from the last bucket to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from megatron_moo.buckets.blocks import BucketPlan


class Parking:
    """Places for the rows of a pass.

    Args:
        plans: the rank's buckets.

    Attributes:
        backwards: the buckets in the order in which updates may be written.
    """

    def __init__(self, plans: Sequence[BucketPlan]) -> None:
        buffers: dict[int, list[BucketPlan]] = {}
        for plan in plans:
            buffers.setdefault(plan.grad.untyped_storage().data_ptr(), []).append(plan)
        self.backwards: list[BucketPlan] = []
        self._given: dict[str, int] = {}
        self._tapes: dict[str, _Tape] = {}
        for held in buffers.values():
            tape = _Tape(sorted(held, key=lambda plan: plan.grad.storage_offset()))
            self.backwards += reversed(tape.plans)
            self._tapes |= {plan.name: tape for plan in held}

    def begin(self) -> None:
        """Start a pass: every bucket is alive and holds its own rows, if any."""
        self.end()
        for tape in self._tapes.values():
            tape.dead.clear()

    def end(self) -> None:
        """Forget where rows are: they are done with, and the memory beside the gradient buffers goes back."""
        for plan in self.backwards:
            plan.at = None
        self._given.clear()
        for tape in self._tapes.values():
            tape.spare = None

    def room(self, plan: BucketPlan) -> torch.Tensor | None:
        """Where a bucket's rows may be received and stay, ``[members * shard]``.

        None for a bucket that cannot be served: of one member (its row is there already), of several
        distributed-optimizer instances (Megatron sums its own row afterwards), or exchanged out of order.
        """
        if plan.members == 1 or plan.instances is not None:
            return None
        room = self._tapes[plan.name].room(plan)
        if room is not None:
            self._given[plan.name] = room.data_ptr()
        return room

    def stay(self, plan: BucketPlan, rows: torch.Tensor) -> bool:
        """Whether a bucket's rows ``[members, shard]`` stay where they arrived; the bucket itself is dead then."""
        if self._given.get(plan.name) != rows.data_ptr():
            return False
        plan.at = rows
        self._tapes[plan.name].dead.add(plan.name)
        return True


class _Tape:
    """The buckets of one gradient buffer, one after the other in memory."""

    def __init__(self, plans: list[BucketPlan]) -> None:
        self.plans = plans
        self.dead: set[str] = set()
        self.spare: torch.Tensor | None = None
        sizes = [plan.grad.numel() for plan in plans]
        largest, ends = max(sizes), list(accumulate(sizes))
        beside = next(count for count, end in enumerate(ends, 1) if end >= largest)
        self._spare_size = ends[beside - 1]
        # Every bucket moves down by the size of the spare, which is at least its own: it never lies under itself.
        self._start = {plan.name: end - size for plan, size, end in zip(plans, sizes, ends, strict=True)}
        self._beside = {plan.name for plan in plans[:beside]}
        offsets = [plan.grad.storage_offset() - plans[0].grad.storage_offset() for plan in plans]
        self._joined = offsets == [end - size for end, size in zip(ends, sizes, strict=True)]

    def room(self, plan: BucketPlan) -> torch.Tensor | None:
        start, size = self._start[plan.name], plan.grad.numel()
        if plan.name in self._beside:
            if self.spare is None:
                self.spare = torch.empty(self._spare_size, dtype=plan.grad.dtype, device=plan.grad.device)
            return self.spare[start : start + size]
        first = start - self._spare_size
        under = (p.name for p in self.plans if self._overlaps(p, first, first + size))
        if not self._joined or not all(name in self.dead for name in under):
            return None
        base = self.plans[0].grad
        return base.as_strided((size,), (1,), base.storage_offset() + first)

    def _overlaps(self, plan: BucketPlan, first: int, last: int) -> bool:
        start = self._start[plan.name]
        return start < last and first < start + plan.grad.numel()
