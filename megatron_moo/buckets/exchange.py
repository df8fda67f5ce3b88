"""The exchange: an all-to-all of a bucket in place of its reduce-scatter, rows parked in the gradient buffer.

    before        grad of member j   = | for shard 0 | for shard 1 | ... |        one objective's gradient
    all-to-all    receive of member i = | from 0      | from 1      | ... |       D rows of shard i
    parked        received over buckets that are dead until the next zeroing (``parking.py``)

The bytes sent are a ring reduce-scatter's, (D-1)/D of the bucket. Megatron drains a bucket's predecessor
before it starts the next (``previous_grad_reduce_bucket_group``), so where rows are not received right where they
stay, one receive buffer serves all buckets of a backward pass: a new one for each would cost a page fault per 4 kB.
With a narrower wire the bucket is
packed first, and what arrives is unpacked over the gradient buffer at once (``wire.py``). Where several members compute
one objective the exchange can go in two stages (``hierarchy.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.doing import DOING
from megatron_moo.buckets.hierarchy import pack_for_group, sum_of_group
from megatron_moo.buckets.phases import Phases, SideStream
from megatron_moo.buckets.wire import Wire


class Arrival:
    """The handle that Megatron waits on; waiting passes the rows on, once."""

    def __init__(self, work: Any, arrived: Callable[[], None], phases: Phases, bucket: str) -> None:
        self._work, self._arrived, self._phases, self._bucket = work, arrived, phases, bucket
        self._started = time.perf_counter()

    def wait(self) -> None:
        """Wait for the rows, then pass them on."""
        if self._work is not None:
            self._phases.hide(time.perf_counter() - self._started)
            DOING.enter("all-to-all", self._bucket)
            with self._phases("exchange"):
                self._work.wait()
            self._work = None
            DOING.leave()
        arrived, self._arrived = self._arrived, _nothing
        arrived()


def _nothing() -> None: ...


class Done:
    """The handle of something that needs no waiting."""

    def wait(self) -> None: ...


class Exchange:
    """Megatron's reduce-scatter function for our buckets; every other tensor goes to the stock function.

    Args:
        step: told of the rows ``[members, shard]`` that arrive; under known weights it scales buckets instead.
        stock: ``torch.distributed.reduce_scatter_tensor``, for tensors that are not ours.
        reduce: Megatron's fp32-accumulating reduce-scatter, for our buckets under known weights.
    """

    def __init__(self, step: Any, stock: Callable[..., Any], reduce: Callable[..., Any]) -> None:
        self._step, self._stock, self._reduce = step, stock, reduce
        self._plans: dict[int, BucketPlan] = {}
        self._free: list[torch.Tensor] = []
        self._wire: Wire | None = None
        self._side: SideStream | None = None
        self.bytes_sent = 0
        self.bytes_between_nodes = 0

    def register(self, plans: list[BucketPlan]) -> None:
        """Take charge of these buckets (found again by the address of their gradient buffer)."""
        self._plans = {plan.grad.data_ptr(): plan for plan in plans}

    def let_go(self) -> None:
        """Give receive buffers back: they would lie beside the activations of the next forward pass."""
        self._free.clear()

    def reset(self) -> None:
        """Start counting a new step."""
        self.bytes_sent, self.bytes_between_nodes = 0, 0

    def __call__(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        op: Any = dist.ReduceOp.SUM,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        plan = self._plans.get(input.data_ptr())
        if plan is None or plan.grad.numel() != input.numel():
            return self._stock(output, input, op=op, group=group, async_op=async_op)
        if self._step.now.scaled:

            def reduce() -> Any:
                self._count_bytes(plan, input, range(plan.members))
                DOING.enter("reduce-scatter", plan.name)
                return self._reduce(output, input, op=op, group=group, async_op=async_op)

            return self._step.reduce_scaled(plan, reduce) or (Done() if async_op else None)
        if self._side is None:
            self._side = SideStream(input.device)
        if not self._side.exists:
            arrival = self._send(plan, group, async_op)
            if async_op:
                return arrival
            arrival.wait()
            return None
        with self._side.behind(), self._step.phases.beside():
            self._send(plan, group, async_op=True).wait()
        if async_op:
            return Done()
        self.join()  # the caller reads the bucket next: several instances sum their shards
        return None

    def join(self) -> None:
        """Let the current stream wait for every exchange of the pass."""
        if self._side is not None and self._side.exists:
            with self._step.phases.join():
                self._side.join()

    def _send(self, plan: BucketPlan, group: dist.ProcessGroup | None, async_op: bool) -> Arrival:
        """Start a bucket's exchange (its first stage where there are two)."""
        work, wire, phases = None, self._wire_of(plan), self._step.phases
        then = partial(self._arrived, plan)
        with phases("exchange"):
            if plan.members == 1:
                sent = received = plan.grad
            elif plan.group > 1:
                sent = pack_for_group(plan, self._take(plan.grad))
                received = self._take(sent)
                inside = plan.hierarchy.inside
                work = dist.all_to_all_single(received, sent, group=inside, async_op=async_op)
                first = plan.rank - plan.rank % plan.group
                self._count_bytes(plan, sent, range(first, first + plan.group))
                then = partial(self._across, plan)
            else:
                # A bucket that goes in two stages in most steps owes what it lost there, of other shards.
                fed = plan.hierarchy is None
                sent = (
                    plan.grad if wire is None else wire.pack(plan.rows, plan.name, self._step.objective, fed)
                )
                room = self._step.room(plan) if wire is None else None
                if room is None:
                    received = self._take(sent)
                else:
                    received = room
                    self._free.clear()  # of earlier slots: what has room of its own needs no receive buffer
                work = dist.all_to_all_single(received, sent.view(-1), group=group, async_op=async_op)
                self._count_bytes(plan, sent, range(plan.members))
        return Arrival(work, partial(then, received, sent), phases, plan.name)

    def _across(self, plan: BucketPlan, received: torch.Tensor, sent: torch.Tensor) -> None:
        """Stage 2 of the hierarchical exchange: sum the group's rows and exchange them across objectives."""
        with self._step.phases("exchange"):
            rows = sum_of_group(received, plan.group).view(-1, plan.shard)
            self._release(received)
            self._release(sent)
            wire = self._wire_of(plan)
            out = rows if wire is None else wire.pack(rows, plan.name, self._step.objective)
            arrived = self._take(out)
            DOING.enter("all-to-all between groups", plan.name)
            dist.all_to_all_single(arrived, out.view(-1), group=plan.hierarchy.across)
            DOING.leave()
            self._count_bytes(plan, out, range(plan.rank % plan.group, plan.members, plan.group))
        self._arrived(plan, arrived, out)

    def _count_bytes(self, plan: BucketPlan, sent: torch.Tensor, members: range) -> None:
        """Count an equal part of ``sent`` for each of ``members``, without this rank's own."""
        part = sent.numel() * sent.element_size() // len(members)
        self.bytes_sent += part * (len(members) - 1)
        if plan.nodes:
            here = plan.nodes[plan.rank]
            self.bytes_between_nodes += part * sum(plan.nodes[member] != here for member in members)

    def _arrived(self, plan: BucketPlan, received: torch.Tensor, sent: torch.Tensor) -> None:
        """Hand the rows ``[members / g, shard]`` to the step; it says when the receive buffer is free again.

        ``sent`` is held until here: the collective read from it.
        """
        wire = self._wire_of(plan)
        if wire is not None:
            with self._step.phases("exchange"):
                rows = wire.unpack(plan.rows, received)
                self._release(received)
            self._step.arrived(plan, rows)
        elif self._step.arrived(plan, received.view(-1, plan.shard)) and plan.members > 1:
            self._release(received)

    def _wire_of(self, plan: BucketPlan) -> Wire | None:
        """How a bucket is packed; None where rows travel as they are, or not at all."""
        config = self._step.config
        if plan.members == 1 or config.wire == "fp32":
            return None
        if self._wire is None:
            self._wire = Wire(config.wire, config.wire_feedback)
        return self._wire

    def _take(self, like: torch.Tensor) -> torch.Tensor:
        """A receive buffer: one that is free and large enough, or a new one in place of those of its kind."""
        for index, buffer in enumerate(self._free):
            if buffer.numel() >= like.numel() and buffer.dtype == like.dtype:
                del self._free[index]
                return buffer[: like.numel()]
        self._free = [buffer for buffer in self._free if buffer.dtype != like.dtype]
        return torch.empty(like.numel(), dtype=like.dtype, device=like.device)

    def _release(self, received: torch.Tensor) -> None:
        """Take back a receive buffer whose rows were copied elsewhere."""
        whole = received.untyped_storage()
        self._free.append(torch.empty(0, dtype=received.dtype, device=received.device).set_(whole))
