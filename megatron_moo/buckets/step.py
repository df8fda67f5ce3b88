"""One step of Bucket-Level MOO: rows arrive, Gramians add up, one reduction, one solve, combine.

The order of events (DESIGN section 3)::

    begin(step)                                     the schedule says which lane computes which objective
      passes:       buckets arrive during backward  rows kept (earlier slots) or parked (last slot)
                                                    Gramian of a bucket as it arrives in the last slot
      end of a slot: counts of the loss             tokens per objective
    resolve()                                       one all-reduce, one batched solve, combine in place
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan, Kind, Segment
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.constants import constant
from megatron_moo.buckets.drops import DropWatch
from megatron_moo.buckets.gramians import GramianSum
from megatron_moo.buckets.hierarchy import FLAT_EVERY, one_objective_each
from megatron_moo.buckets.parking import Parking
from megatron_moo.buckets.partial import sum_over, summed_copies
from megatron_moo.buckets.passes import Pass, kept_bytes_per_value, plan_passes
from megatron_moo.buckets.phases import Phases
from megatron_moo.buckets.weights import WeightSolver
from megatron_moo.errors import MooError
from megatron_moo.kernels import combine, combine_segments, gramian, gramian_segments
from megatron_moo.kernels.rows import few_enough


class Schedule(Protocol):
    """Which objective every lane computes."""

    def assignment(self, step: int) -> list[list[int]]:
        """``[slots][lanes]`` objective indices of a step."""


@dataclass
class Resolved:
    """What a step's solve saw and decided; tensors on the rows' device.

    Attributes:
        gramians: ``[B, K, K]`` fp64, of rows that are means over their objective's tokens.
        weights: ``[B, K]`` fp64.
        counts: ``[K]`` fp64, tokens (or shares of micro-batches) per objective.
        dropped: ``[K]`` bool, objectives with a non-finite row.
        same: ``[K, 3]`` fp64, for an objective that two positions (slot, lane) compute: inner product of the two
            whole-model rows and their squared norms; zeros for the others. Its cosine is the noise floor.
        riders: what others asked to be summed in the same reduction.
        phases: what the step's time went to.
        staleness: steps since the weights were solved for.
    """

    step: int
    gramians: torch.Tensor
    weights: torch.Tensor
    counts: torch.Tensor
    dropped: torch.Tensor
    same: torch.Tensor
    riders: list[torch.Tensor] = field(default_factory=list)
    phases: Phases = field(default_factory=lambda: Phases(torch.device("cpu")))
    staleness: int = 0

    @property
    def phase_s(self) -> dict[str, float]:
        """Seconds by phase (:class:`Phases`)."""
        return self.phases.read()


class MooStep:
    """The rank's part of Bucket-Level MOO.

    ``passes`` are those of the step under way and ``now`` the one that runs; ``zeroes_between_passes`` says whether
    each starts from an empty gradient buffer.

    Args:
        config: the user's choice.
        method: Gramians ``[B, K, K]`` to weights ``[B, K]`` (``megatron_moo.moo``).
        objectives: names of the K objectives.
        schedule: objective of every (slot, lane) at a step.
        preference: ``[K]``, sums to 1, or None for uniform.
    """

    zeroes_between_passes = True

    def __init__(
        self,
        config: MooConfig,
        method: Callable[..., torch.Tensor],
        objectives: Sequence[str],
        schedule: Schedule,
        preference: torch.Tensor | None = None,
    ) -> None:
        self.config, self.solver = config, WeightSolver(config, method, preference)
        self.objectives, self.schedule = tuple(objectives), schedule
        self.plans: list[BucketPlan] = []
        self.block_names: tuple[str, ...] = ()
        self.last: Resolved | None = None
        self.on_begin: list[Callable[[int], None]] = []
        self.on_resolved: list[Callable[[Resolved], None]] = []
        self.on_end: list[Callable[[], None]] = []
        self.riders: list[Callable[[], torch.Tensor]] = []
        # Mean loss per objective [K] from the summed riders, for methods that weigh by losses.
        self.losses_of: Callable[[list[torch.Tensor]], torch.Tensor] | None = None
        # Square root of a shard's metric [shard]: inner products are taken of rows times it (--moo-metric adam).
        self.scale_of: Callable[[BucketPlan], torch.Tensor] | None = None
        self._tp_group: Any = None
        self._embd_group: Any = None
        self._world: Any = None
        self._lane = 0
        self._members = ""
        self._drops = DropWatch(objectives)
        self.now = Pass(0)
        self.passes: tuple[Pass, ...] = (self.now,)
        self.phases = Phases(torch.device("cpu"))
        self._step = -1
        self._memory: Any = None

    @property
    def k(self) -> int:
        return len(self.objectives)

    def place(
        self,
        plans: list[BucketPlan],
        block_names: Sequence[str],
        members: str,
        lane: int,
        counts_tokens: bool,
        counts_ahead: bool = True,
        tp_group: Any = None,
        embd_group: Any = None,
        world: Any = None,
    ) -> None:
        """Say which buckets this rank holds.

        Args:
            plans: the rank's buckets, in an order that tensor-parallel peers share.
            block_names: every block of the model, the same list on all ranks.
            members: a hash of which parameter is in which block.
            lane: this rank's lane.
            counts_tokens: whether this rank reports the tokens of its loss (one rank per data-parallel and
                context-parallel rank).
            counts_ahead: whether it reports the tokens of its batches (one rank per data-parallel rank).
            tp_group, embd_group: where copies of partial rows are summed.
            world: all ranks, in a communicator of its own: the reduction must not queue behind Megatron's.
        """
        self.plans, self.block_names, self._lane = plans, tuple(block_names), lane
        self._parking = Parking(plans)
        if self._members not in ("", members):
            raise MooError(
                "the checkpoint's blocks hold other parameters (buckets depend on the layout)",
                f"--moo-block {self.config.block}",
                "resume at the layout and bucket size of that run, or use another kind of block",
            )
        self._members = members
        self._counts_ahead = counts_ahead
        self._counts_tokens, self._tp_group, self._embd_group = counts_tokens, tp_group, embd_group
        self._world = world
        self.solver.place(block_names, self.k, plans[0].grad.device)

    def cost(self) -> dict[str, int]:
        """Passes of a step that solves, and bytes that this rank keeps between passes at most."""
        values = sum(plan.grad.numel() for plan in self.plans)
        return {
            "passes": len(plan_passes(self.config.slots, self.config.recompute)),
            "kept_bytes": kept_bytes_per_value(self.config) * values,
        }

    def begin(self, step: int) -> None:
        """Start a step; the same step once more (Megatron's rerun machine) forgets its first attempt."""
        if step == self._step:
            self._forget(copy.deepcopy(self._memory))
        else:
            self._memory = self._remember()
        for call in self.on_begin:
            call(step)
        self._step = step
        self._assignment = self.schedule.assignment(step)
        self._group_members()
        device = self.plans[0].grad.device
        self._sum = GramianSum(self._assignment, len(self.block_names), self.k, device)
        self._counts = torch.zeros(self.k, dtype=torch.float64, device=device)
        self._bad = torch.zeros(self.k, dtype=torch.float64, device=device)
        self._coefficients: torch.Tensor | None = None
        self._kept: dict[str, list[torch.Tensor]] = {}
        self._scaled: dict[str, torch.Tensor] = {}
        self.phases = Phases(device)
        self.passes = self._plan()

    def _group_members(self) -> None:
        """Let buckets whose neighbours compute one objective travel in two stages, but not in every step."""
        for plan in self.plans:
            plan.group = 1
            size = plan.hierarchy.size if plan.hierarchy else 1
            if self._step % FLAT_EVERY and one_objective_each(self._assignment, plan.lanes, size):
                plan.group = size

    def _remember(self) -> Any:
        """What a step changes that the next one reads."""
        return self.solver.state_dict(), self._drops.drops

    def _forget(self, memory: Any) -> None:
        """Go back to what :meth:`_remember` returned."""
        state, self._drops.drops = memory
        self.solver.load_state_dict(state)

    def _plan(self) -> tuple[Pass, ...]:
        return plan_passes(self.config.slots, self.config.recompute)

    def look_ahead(self, amounts: Sequence[Sequence[float]]) -> None:
        """Learn this rank's tokens ``[slots][micro-batches]`` of a step that does not solve (``--moo-every``)."""

    def begin_pass(self, now: Pass) -> None:
        """Start one of :attr:`passes`."""
        self.now = now
        self._parking.begin()
        if not now.held:
            self._kept = {plan.name: [] for plan in self.plans}

    @property
    def is_last(self) -> bool:
        """Whether the pass under way ends the step."""
        return self.now is self.passes[-1]

    @property
    def objective(self) -> int:
        """What this rank computes in the current slot."""
        return self._assignment[self.now.slot][self._lane]

    def room(self, plan: BucketPlan) -> torch.Tensor | None:
        """Where the rows of a bucket may be received and stay until the weights are known, or None."""
        return self._parking.room(plan) if self.now.pairs else None

    def arrived(self, plan: BucketPlan, received: torch.Tensor) -> bool:
        """Park the rows ``[members, shard]`` of a bucket and form their Gramians, or keep them for a later pass.

        Returns:
            whether ``received`` may be overwritten.
        """
        if not self.now.pairs:
            return self._keep(plan, received)
        if self._parking.stay(plan, received):
            self._park(plan, received, [])
            return False
        self._park(plan, received, self._moves(plan, received))
        return True

    def _keep(self, plan: BucketPlan, received: torch.Tensor) -> bool:
        """Keep the rows of an earlier slot outside the gradient buffer; returns whether they were copied."""
        dtype = torch.bfloat16 if self.config.row_dtype == "bf16" else received.dtype
        # Rows that lie in the gradient buffer (a single member's, or unpacked ones) are about to be zeroed.
        alone = received.data_ptr() == plan.grad.data_ptr()
        if plan.instances is not None:
            sum_over([received], plan.instances)
        kept = received.to(dtype, copy=alone)
        self._kept[plan.name].append(kept)
        return kept is not received

    @staticmethod
    def _moves(plan: BucketPlan, received: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """What must be copied over the bucket, which is dead until the next zeroing; this rank's own row is there."""
        if received.data_ptr() == plan.grad.data_ptr():
            return []
        if plan.group > 1:  # a row is a sum over its group: none of them is here already
            return [(received, plan.rows)]
        others = [slice(0, plan.rank), slice(plan.rank + 1, plan.members)]
        return [(received[r], plan.rows[r]) for r in others if r.start < r.stop]

    def _park(
        self,
        plan: BucketPlan,
        received: torch.Tensor,
        moves: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> None:
        """Form the Gramian of the rows of a pass, and copy what has to move while it is in the cache."""
        if plan.instances is not None:
            # Megatron itself sums this rank's own row over the instances, after this call: the rest is ours, and the
            # Gramian waits for the end of the backward pass.
            with self.phases("exchange"):
                for source, target in moves:
                    target.copy_(source)
                others = [plan.rows[: plan.rank], plan.rows[plan.rank + 1 :]]
                sum_over(others, plan.instances)
            return
        with self.phases("gramian"):
            scale = self._scale(plan)
            if scale is None and self._at_once(plan):
                for source, target in moves:
                    target.copy_(source)
                products, _ = gramian_segments([*self._kept[plan.name], plan.parked], plan.own_table)
                for block, raw in zip(plan.own_table.blocks, products, strict=True):
                    self._sum.note(plan.row_lanes, block, raw)
                return
            for segment in plan.segments:
                cut = slice(segment.start, segment.end)
                here = [(source[:, cut], target[:, cut]) for source, target in moves]
                if segment.kind is Kind.OWN:
                    rows = [*(kept[:, cut] for kept in self._kept[plan.name]), received[:, cut]]
                    self._note(plan, segment, rows, scale, here)
                else:
                    for source, target in here:
                        target.copy_(source)

    def _at_once(self, plan: BucketPlan) -> bool:
        """Whether one launch serves all segments of a bucket; on a CPU each is parked while it is in the cache."""
        return plan.grad.is_cuda and few_enough([*self._kept[plan.name], plan.parked])

    def _add_gramians(self, plan: BucketPlan) -> None:
        with self.phases("gramian"):
            scale = self._scale(plan)
            for segment in plan.segments:
                if segment.kind is Kind.OWN:
                    self._note(plan, segment, self._columns(plan, segment), scale)

    def _scale(self, plan: BucketPlan) -> torch.Tensor | None:
        return None if self.scale_of is None else self.scale_of(plan)

    def _note(
        self,
        plan: BucketPlan,
        segment: Segment,
        rows: Sequence[torch.Tensor],
        scale: torch.Tensor | None,
        park: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
    ) -> None:
        """Form the products of a segment's rows in the metric, and park rows on the way."""
        if scale is not None:
            for source, target in park:
                target.copy_(source)
            rows, park = [piece.float() * scale[segment.start : segment.end] for piece in rows], ()
        self._sum.note(plan.row_lanes, segment.block, gramian(rows, park=park))

    def count(self, amount: torch.Tensor | float) -> None:
        """Report what the pass's loss summed over on this rank: tokens, or its share of the ranks."""
        if self._counts_tokens:
            self._counts[self.objective] += amount

    def reduce_scaled(self, plan: BucketPlan, reduce: Callable[[], Any]) -> Any:
        """Scale a whole bucket by known coefficients; in the step's last pass add the earlier ones and reduce.

        Args:
            plan: the bucket, holding this rank's gradient of the current objective.
            reduce: starts Megatron's own reduce-scatter and returns its handle.
        """
        assert self._coefficients is not None
        scale = self._coefficients[:, self.objective].to(plan.grad.dtype)
        # Once summed a bad gradient cannot be told apart: leave this rank's bucket out before.
        bad = ~torch.isfinite(torch.linalg.vector_norm(plan.grad))
        self._bad[self.objective] += bad
        for segment in plan.whole:
            plan.grad[segment.start : segment.end].mul_(scale[segment.block])
        if plan.grad.is_cuda or bool(bad):
            plan.grad.masked_fill_(bad, 0.0)
        if not self.is_last:
            if plan.name in self._scaled:
                self._scaled[plan.name].add_(plan.grad)
            else:
                self._scaled[plan.name] = plan.grad.clone()
            return None
        if plan.name in self._scaled:
            plan.grad.add_(self._scaled.pop(plan.name))
        return reduce()

    def end_pass(self) -> None:
        """Finish a pass whose buckets have all arrived; settle the weights when it is time. A collective call."""
        if self.now.pairs:
            self._count_pairs()
        if self.now.resolves:
            self.resolve()
        if self.is_last:
            for call in self.on_end:
                call()

    def _count_pairs(self) -> None:
        """Add the products of the rows at hand to the Gramians."""
        for plan in self.plans:
            if plan.instances is not None:
                self._add_gramians(plan)
        with self.phases("gramian"):
            self._add_partial_gramians()
            self._sum.fold((*self.now.held, self.now.slot), self.now.pairs)

    def resolve(self) -> Resolved:
        """Reduce, solve and write the update into every bucket's own shard. A collective call."""
        with self.phases("exchange"):
            raw, counts, same, *riders = self._reduced(
                [self._sum.gramians, self._counts, self._sum.same, *(rider() for rider in self.riders)]
            )
        with self.phases("gramian"):
            per = torch.where(counts > 0, 1.0 / counts.clamp(min=1e-300), 0.0)
            gramians = raw * per[:, None] * per[None, :]
            dropped = (~torch.isfinite(gramians.diagonal(dim1=-2, dim2=-1))).any(0)
            gone = dropped[:, None] | dropped[None, :]
            gramians = torch.where(gone, 0.0, gramians)
        with self.phases("solve"):
            losses = None if self.losses_of is None else self.losses_of(riders)
            weights = self.solver(gramians, torch.where(dropped, 0.0, counts), losses, self._step)
            weights = torch.where(dropped, 0.0, weights)
        with self.phases("combine"):
            if self.is_last:
                self._apply(weights * per, dropped)
            else:
                self._coefficients = weights * per
            self._kept = {}
            self._parking.end()
        self.last = Resolved(self._step, gramians, weights, counts, dropped, same, riders, self.phases)
        self._drops.count(self._step, dropped, counts)
        for call in self.on_resolved:
            call(self.last)
        return self.last

    def _apply(self, coefficients: torch.Tensor, dropped: torch.Tensor) -> None:
        """Combine the rows into every bucket's own shard, with ``coefficients`` ``[B, K]``."""
        # Asking costs a synchronisation on a GPU, where masking costs less.
        masked = coefficients.is_cuda or bool(dropped.any())
        for plan in self._parking.backwards:
            members = constant(self._objectives_of(plan), coefficients.device)
            if self._at_once(plan):
                rows = [*self._kept[plan.name], plan.parked]
                combine_segments(rows, coefficients[:, members], plan.table, plan.own, masked, norms=False)
                continue
            for segment in plan.segments:
                out = plan.own[segment.start : segment.end]
                combine(self._columns(plan, segment), coefficients[segment.block, members], out, masked)

    def _reduced(self, parts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Sum over all ranks, in one collective."""
        flat = torch.cat([part.flatten().double() for part in parts])
        dist.all_reduce(flat, group=self._world)
        pieces = flat.split([part.numel() for part in parts])
        return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]

    def _objectives_of(self, plan: BucketPlan) -> tuple[int, ...]:
        """Objective of every row of a bucket, slot by slot, ``[slots * members / g]``."""
        return tuple(objectives[lane] for objectives in self._assignment for lane in plan.row_lanes)

    def _columns(self, plan: BucketPlan, segment: Segment) -> list[torch.Tensor]:
        pieces = [*self._kept[plan.name], plan.parked]
        return [rows[:, segment.start : segment.end] for rows in pieces]

    def _add_partial_gramians(self) -> None:
        for kind, group in ((Kind.PARTIAL_TP, self._tp_group), (Kind.PARTIAL_EMBD, self._embd_group)):
            todo = [(plan, seg) for plan in self.plans for seg in plan.segments if seg.kind is kind]
            if not todo:
                continue
            copies = summed_copies([self._columns(plan, segment) for plan, segment in todo], group)
            if dist.get_rank(group) != 0:
                continue
            scales = {plan.name: self._scale(plan) for plan in dict.fromkeys(plan for plan, _ in todo)}
            for (plan, segment), rows in zip(todo, copies, strict=True):
                self._note(plan, segment, [rows], scales[plan.name])

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: the method's state, with the same keys on every rank."""
        return {**self.solver.state_dict(), "members": self._members}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self.solver.load_state_dict(state)
        self._members = state.get("members", "")
