"""Where rows wait for the weights: one bucket further down in the gradient buffer, so that nothing is copied.

    gradient buffer   |  bucket 0  |  bucket 1  |  bucket 2  | ...      exchanged in this order
    rows              0 -> spare      1 -> 0       2 -> 1               received right where they stay

A bucket is dead once it was exchanged, so the rows of the next one are received over it. Only one bucket needs room of
its own, the *spare*, and what follows it moves down by the size of that one. A bucket that does not fit (a tied
embedding after small layers) is received elsewhere and copied home, as is everything before the spare's. The spare is
chosen so that most values are served while the memory stays that of one receive buffer for the largest bucket, and 2 %
of the gradients at most beside it.

The update of a bucket is written into the bucket itself, over rows of later ones, so updates are combined from the last
bucket to the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from megatron_moo.buckets.blocks import BucketPlan

_EXTRA = 50  # one part in so many of the gradients


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
        tapes = [
            _Tape(sorted(held, key=lambda plan: plan.grad.storage_offset())) for held in buffers.values()
        ]
        self.backwards = [plan for tape in tapes for plan in reversed(tape.plans)]
        self._given: dict[str, int] = {}
        sizes = [plan.grad.numel() for plan in plans]
        # Spares are held side by side until the weights are known; one receive buffer would serve all buffers.
        if sum(tape.cost for tape in tapes) > max(sizes, default=0) + sum(sizes) // _EXTRA:
            tapes = []
        self._tapes = {plan.name: tape for tape in tapes for plan in tape.plans}

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

        None for a bucket that cannot be served: one that does not fit, of one member (its row is there already), of
        several distributed-optimizer instances (Megatron sums its own row afterwards), or exchanged out of order.
        """
        tape = self._tapes.get(plan.name)
        if tape is None or plan.members == 1 or plan.instances is not None:
            return None
        room = tape.room(plan)
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
    """The buckets of one gradient buffer, one after the other in memory.

    Attributes:
        cost: values beside the gradient buffer: the spare, and a receive buffer for what is not served after it.
    """

    def __init__(self, plans: list[BucketPlan]) -> None:
        self.plans = plans
        self.dead: set[str] = set()
        self.spare: torch.Tensor | None = None
        self._sizes = [plan.grad.numel() for plan in plans]
        self._starts = [end - size for end, size in zip(accumulate(self._sizes), self._sizes, strict=True)]
        self._number = {plan.name: number for number, plan in enumerate(plans)}
        offsets = [plan.grad.storage_offset() - plans[0].grad.storage_offset() for plan in plans]
        allowed = max(self._sizes) + sum(self._sizes) // _EXTRA if offsets == self._starts else 0
        # The largest bucket's own spare always costs what is allowed: nothing after it fails to fit.
        choices = [self._served(number) for number in range(len(plans))]
        fair = [choice for choice in choices if choice[1] <= allowed] or [({}, 0)]
        self._first, self.cost = max(
            fair, key=lambda choice: (sum(self._sizes[number] for number in choice[0]), -choice[1])
        )

    def _served(self, spare: int) -> tuple[dict[int, int], int]:
        """What the spare of bucket ``spare`` serves: first value of every bucket's room, and the values it costs."""
        shift = self._sizes[spare]
        first, home, rest = {spare: -shift}, list[int](), 0
        for number in range(spare + 1, len(self.plans)):
            start = self._starts[number] - shift
            end = start + self._sizes[number]
            if end <= self._starts[number] and not any(self._overlaps(at, start, end) for at in home):
                first[number] = start
            else:
                home.append(number)
                rest = max(rest, self._sizes[number])
        return first, shift + rest

    def room(self, plan: BucketPlan) -> torch.Tensor | None:
        number, size = self._number[plan.name], plan.grad.numel()
        first = self._first.get(number)
        if first is None:
            return None
        if first < 0:
            if self.spare is None:
                self.spare = torch.empty(size, dtype=plan.grad.dtype, device=plan.grad.device)
            return self.spare
        under = (p.name for at, p in enumerate(self.plans) if self._overlaps(at, first, first + size))
        if not all(name in self.dead for name in under):
            return None
        base = self.plans[0].grad
        return base.as_strided((size,), (1,), base.storage_offset() + first)

    def _overlaps(self, number: int, first: int, last: int) -> bool:
        return self._starts[number] < last and first < self._starts[number] + self._sizes[number]
