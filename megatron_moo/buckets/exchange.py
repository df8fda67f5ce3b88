"""The exchange: an all-to-all of a bucket in place of its reduce-scatter, rows parked in the gradient buffer.

    before        grad of member j   = | for shard 0 | for shard 1 | ... |        one objective's gradient
    all-to-all    receive of member i = | from 0      | from 1      | ... |       D rows of shard i
    parked        the receive buffer is copied over grad, which is dead until the next zeroing

The bytes sent are a ring reduce-scatter's, (D-1)/D of the bucket. At most two receive buffers are alive, because
Megatron drains a bucket's predecessor before it starts the next (``previous_grad_reduce_bucket_group``).
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
        arrived: Callable[[BucketPlan, torch.Tensor], None],
        waited: Callable[[float], None],
    ) -> None:
        self._plan, self._received, self._work = plan, received, work
        self._arrived, self._waited = arrived, waited

    def wait(self) -> None:
        """Wait for the rows, then pass them on; the receive buffer is released."""
        if self._work is not None:
            started = time.perf_counter()
            self._work.wait()
            self._waited(time.perf_counter() - started)
        received, self._received = self._received, torch.empty(0)
        self._arrived(self._plan, received)


class Done:
    """The handle of something that needs no waiting."""

    def wait(self) -> None: ...


class Exchange:
    """Megatron's reduce-scatter function for our buckets; every other tensor goes to the stock function.

    Args:
        step: told of the rows ``[members, shard]`` that arrive; between solves it scales buckets instead.
        stock: ``torch.distributed.reduce_scatter_tensor``, for tensors that are not ours.
        reduce: Megatron's fp32-accumulating reduce-scatter, for our buckets between solves.
    """

    def __init__(self, step: Any, stock: Callable[..., Any], reduce: Callable[..., Any]) -> None:
        self._step, self._stock, self._reduce = step, stock, reduce
        self._plans: dict[int, BucketPlan] = {}
        self.seconds = 0.0
        self.bytes_sent = 0

    def register(self, plans: list[BucketPlan]) -> None:
        """Take charge of these buckets (found again by the address of their gradient buffer)."""
        self._plans = {plan.grad.data_ptr(): plan for plan in plans}

    def reset(self) -> None:
        """Start counting a new step."""
        self.seconds, self.bytes_sent = 0.0, 0

    def __call__(
        self,
        output: torch.Tensor,
        input: torch.Tensor,
        op: dist.ReduceOp = dist.ReduceOp.SUM,
        group: dist.ProcessGroup | None = None,
        async_op: bool = False,
    ) -> Any:
        plan = self._plans.get(input.data_ptr())
        if plan is None or plan.grad.numel() != input.numel():
            return self._stock(output, input, op=op, group=group, async_op=async_op)
        if not self._step.solving:
            sync = partial(self._reduce, output, input, op=op, group=group, async_op=async_op)
            return self._step.reduce_scaled(plan, sync) or (Done() if async_op else None)
        started = time.perf_counter()
        work = None
        if plan.members == 1:
            received = input
        else:
            received = torch.empty_like(input)
            work = dist.all_to_all_single(received, input, group=group, async_op=async_op)
            self.bytes_sent += input.numel() * input.element_size() * (plan.members - 1) // plan.members
        self._count(time.perf_counter() - started)
        arrival = Arrival(plan, received.view(plan.members, -1), work, self._step.arrived, self._count)
        if async_op:
            return arrival
        arrival.wait()
        return None

    def _count(self, seconds: float) -> None:
        self.seconds += seconds
