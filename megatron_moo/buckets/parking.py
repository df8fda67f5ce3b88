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


def rooms(buffers: Sequence[Sequence[int]]) -> tuple[list[dict[int, int]], int]:
    """Which buckets are served, and what that costs; the plan (``cluster/memory.py``) counts with it too.

    Args:
        buffers: values of the buckets of every gradient buffer whose rows travel, in the order of their exchange.

    Returns:
        per buffer the first value of every served bucket's room (below 0: in the spare), and the values beside all
        gradient buffers: spares with the receive buffers of what is not served, or one receive buffer for everything.
    """
    chosen = [_rooms_of(sizes) for sizes in buffers]
    # Spares are held side by side until the weights are known; one receive buffer would serve all buffers.
    largest, cost = max(map(max, buffers), default=0), sum(cost for _, cost in chosen)
    if cost > largest + sum(map(sum, buffers)) // _EXTRA:
        return [{} for _ in buffers], largest
    return [first for first, _ in chosen], cost


def _rooms_of(sizes: Sequence[int]) -> tuple[dict[int, int], int]:
    """The spare that serves most values of one buffer, of those that cost what is allowed."""
    allowed = max(sizes) + sum(sizes) // _EXTRA
    # The largest bucket's own spare always costs what is allowed: nothing after it fails to fit.
    fair = [choice for spare in range(len(sizes)) if (choice := _served(sizes, spare))[1] <= allowed]
    return max(fair, key=lambda choice: (sum(sizes[number] for number in choice[0]), -choice[1]))


def _served(sizes: Sequence[int], spare: int) -> tuple[dict[int, int], int]:
    """What the spare of bucket ``spare`` serves: first value of every bucket's room, and the values it costs."""
    shift, starts = sizes[spare], _starts(sizes)
    first, home, rest = {spare: -shift}, list[int](), 0
    for number in range(spare + 1, len(sizes)):
        start, end = starts[number] - shift, starts[number] - shift + sizes[number]
        over = (starts[at] < end and start < starts[at] + sizes[at] for at in home)
        if end <= starts[number] and not any(over):
            first[number] = start
        else:
            home.append(number)
            rest = max(rest, sizes[number])
    # What comes before the spare is received while there is none yet.
    return first, max(shift + rest, *sizes[:spare], 0)


def _starts(sizes: Sequence[int]) -> list[int]:
    return [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]


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
        tapes = [tape for tape in tapes if tape.can_serve]
        for tape, first in zip(tapes, rooms([tape.sizes for tape in tapes])[0], strict=True):
            tape.first = first
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
        room = None if tape is None else tape.room(plan)
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
        first: first value of every served bucket's room, by its number; below 0 in the spare.
        dead: buckets that were exchanged in the pass under way, so that rows of others may lie over them.
    """

    def __init__(self, plans: list[BucketPlan]) -> None:
        self.plans = plans
        self.first: dict[int, int] = {}
        self.dead: set[str] = set()
        self.spare: torch.Tensor | None = None
        self.sizes = [plan.grad.numel() for plan in plans]
        self._starts = _starts(self.sizes)
        self._number = {plan.name: number for number, plan in enumerate(plans)}

    @property
    def can_serve(self) -> bool:
        """Whether rows travel and are ours alone, and no bucket lies apart from its neighbours."""
        offsets = [plan.grad.storage_offset() - self.plans[0].grad.storage_offset() for plan in self.plans]
        ours = all(plan.members > 1 and plan.instances is None for plan in self.plans)
        return ours and offsets == self._starts

    def room(self, plan: BucketPlan) -> torch.Tensor | None:
        number, size = self._number[plan.name], plan.grad.numel()
        first = self.first.get(number)
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
        return self._starts[number] < last and first < self._starts[number] + self.sizes[number]
