"""The exchange: an all-to-all of a bucket in place of its reduce-scatter, rows parked in the gradient buffer.

    before        grad of member j   = | for shard 0 | for shard 1 | ... |        one objective's gradient
    all-to-all    receive of member i = | from 0      | from 1      | ... |       D rows of shard i
    parked        the receive buffer is copied over grad, which is dead until the next zeroing

The bytes sent are a ring reduce-scatter's, (D-1)/D of the bucket. Megatron drains a bucket's predecessor
before it starts the next (``previous_grad_reduce_bucket_group``), so one receive buffer serves all buckets
of a backward pass: a new one for each would cost a page fault per 4 kB.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan


class Arrival:
    """The handle that Megatron waits on; waiting hands the rows to ``arrived(plan, rows)`` once."""

    def __init__(
        self,
        plan: BucketPlan,
        received: torch.Tensor,
        work: Any,
        arrived: Callable[[BucketPlan, torch.Tensor], bool],
        waited: Callable[[float], None],
        release: Callable[[torch.Tensor], None],
    ) -> None:
        self._plan, self._received, self._work = plan, received, work
        self._arrived, self._waited, self._release = arrived, waited, release

    def wait(self) -> None:
        """Wait for the rows, then pass them on; the receive buffer is released."""
        if self._work is not None:
            started = time.perf_counter()
            self._work.wait()
            self._waited(time.perf_counter() - started)
        received, self._received = self._received, torch.empty(0)
        if self._arrived(self._plan, received) and self._plan.members > 1:
            self._release(received)


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
        self.seconds = 0.0
        self.bytes_sent = 0

    def register(self, plans: list[BucketPlan]) -> None:
        """Take charge of these buckets (found again by the address of their gradient buffer)."""
        self._plans = {plan.grad.data_ptr(): plan for plan in plans}
        self._step.on_resolved.append(lambda _resolved: self._free.clear())

    def reset(self) -> None:
        """Start counting a new step."""
        self.seconds, self.bytes_sent = 0.0, 0

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
            sync = partial(self._reduce, output, input, op=op, group=group, async_op=async_op)
            return self._step.reduce_scaled(plan, sync) or (Done() if async_op else None)
        started = time.perf_counter()
        work = None
        if plan.members == 1:
            received = input
        else:
            received = self._take(input)
            work = dist.all_to_all_single(received, input, group=group, async_op=async_op)
            self.bytes_sent += input.numel() * input.element_size() * (plan.members - 1) // plan.members
        self._count(time.perf_counter() - started)
        rows = received.view(plan.members, -1)
        arrival = Arrival(plan, rows, work, self._step.arrived, self._count, self._release)
        if async_op:
            return arrival
        arrival.wait()
        return None

    def _take(self, like: torch.Tensor) -> torch.Tensor:
        """A receive buffer: one that is free and large enough, or a new one in place of those too small."""
        for index, buffer in enumerate(self._free):
            if buffer.numel() >= like.numel() and buffer.dtype == like.dtype:
                del self._free[index]
                return buffer[: like.numel()]
        self._free.clear()
        return torch.empty_like(like)

    def _release(self, received: torch.Tensor) -> None:
        """Take back a receive buffer whose rows were copied elsewhere."""
        whole = received.untyped_storage()
        self._free.append(torch.empty(0, dtype=received.dtype, device=received.device).set_(whole))

    def _count(self, seconds: float) -> None:
        self.seconds += seconds
