"""One rank of a paired run: every variant has a model and an optimizer of its own, and they take turns."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import statistics
import time
from functools import partial
from typing import Any

from _alone import Alone
from _measure import ByteCounter, memory_of
from _setup import ALONE, STOCK, Setup

WARM_UP = 3


def rank_main(setup: Setup) -> None:
    """Measure; rank 0 prints one line ``RESULT {json}``."""
    from megatron_moo.training import platform

    platform.prepare()
    import torch.distributed as dist

    from tests.distributed.case import Case
    from tests.distributed.ranks import start

    case = Case(
        setup.name, dp=setup.dp, objectives=setup.objectives, slots=setup.slots, ragged=False, seq=128,
        flags=setup.flags,
    )  # fmt: skip
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        args = start(case)
        counter = ByteCounter()
        variants = {name: make(name, case, args) for name in setup.variants}
        result = memory(variants) if setup.memory else turns(setup, variants, counter)
    result["parameters"] = next(iter(variants.values())).size
    if dist.get_rank() == 0:
        print("RESULT " + json.dumps(result), flush=True)
    dist.barrier()


def turns(setup: Setup, variants: dict[str, Any], counter: ByteCounter) -> dict[str, Any]:
    """Wall and CPU seconds of every turn (CPU summed over ranks), bytes of a step, medians of the phases."""
    import torch
    import torch.distributed as dist

    wall: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    sent: dict[str, dict[str, float]] = {}
    for turn in range(setup.pairs + WARM_UP):
        for name in list(variants) if turn % 2 else reversed(variants):
            dist.barrier()
            counter.take()
            started, worked = time.perf_counter(), time.process_time()
            variants[name].train_step(turn)
            sent[name] = counter.take()
            dist.barrier()
            if turn >= WARM_UP:
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - worked)
                phases[name].append(variants[name].phase())
    totals = torch.tensor([cpu[name] for name in variants])
    dist.all_reduce(totals)
    medians = {
        name: {key: statistics.median(p[key] for p in seen) for key in seen[0]}
        for name, seen in phases.items()
    }
    return {
        "wall": wall,
        "cpu": dict(zip(variants, totals.tolist(), strict=True)),
        "phase": medians,
        "bytes": sent,
        "gramian_values": {name: v.gramian_values for name, v in variants.items() if isinstance(v, Ours)},
        "grad_bytes": {name: v.grad_bytes for name, v in variants.items() if isinstance(v, Variant)},
    }


def memory(variants: dict[str, Any]) -> dict[str, Any]:
    """MB of tensors at rest and at the peak of a step, the largest over ranks."""
    import torch
    import torch.distributed as dist

    (variant,) = variants.values()
    for turn in range(WARM_UP):
        variant.train_step(turn)
    worst = torch.tensor(memory_of(lambda: variant.train_step(WARM_UP)), dtype=torch.float64)
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    return {"memory": worst.tolist()}


def make(name: str, case: Any, args: Any) -> Any:
    """The variant of a name."""
    from tests.distributed.ranks import batches_of_rank

    if name in ALONE:
        return Alone(name, args, batches_of_rank(case, 0, 0), case.slots)
    return Variant(name, case, args) if name in STOCK else Ours(name, case, args)


class Variant:
    """Megatron's training step with one of its own reductions."""

    def __init__(self, name: str, case: Any, args: Any) -> None:
        from megatron.core import parallel_state as ps
        from megatron.core.distributed import finalize_model_grads
        from megatron.core.utils import get_model_config

        from megatron_moo.buckets.lanes import find_lanes
        from megatron_moo.buckets.placement import peer_groups
        from megatron_moo.training.forward import forward_step
        from tests.distributed.ranks import batches_of_rank

        self.args = args
        self.buffer = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
        self.construct(name, case)
        lanes = find_lanes(peer_groups(ps), ps.get_data_parallel_rank())
        self.data = batches_of_rank(case, lanes.lane, lanes.peer)
        self.config = get_model_config(self.model[0])
        self.config.grad_scale_func, self.config.timers = self.optimizer.scale_loss, None
        self.config.no_sync_func = self.model[0].no_sync
        self.config.finalize_model_grads_func = finalize_model_grads
        self.forward = partial(forward_step, record=lambda _batch: lambda *_: None)
        self.size = sum(p.numel() for p in self.model[0].parameters())
        groups = self.model[0].bucket_groups
        self.grad_bytes = sum(
            b.grad_data.numel() * b.grad_data.element_size() for g in groups for b in g.buckets
        )

    def construct(self, name: str, case: Any) -> None:
        """Model, optimizer, reduction and schedule."""
        import torch.distributed as dist
        from megatron.training import training

        from tests.distributed.ranks import build

        self.model, self.optimizer, self.scheduler = build(case, self.args)
        self.reduce = self.buffer.reduce_scatter_with_fp32_accumulation
        self.schedule = training.get_forward_backward_func()
        if name == "plain":
            self.reduce = dist.reduce_scatter_tensor
            for group in self.model[0].bucket_groups:
                group.ddp_config = dataclasses.replace(
                    group.ddp_config, reduce_scatter_with_fp32_accumulation=False
                )
                group.previous_grad_reduce_bucket_group = None

    def train_step(self, turn: int) -> None:
        """One step of Megatron."""
        from megatron.training import training

        self.args.curr_iteration = turn
        self.buffer.dist_reduce_scatter_func = self.reduce
        training.train_step(
            lambda it, m: self.forward(it, m), self.data, self.model, self.optimizer, self.scheduler,
            self.config, self.schedule, turn,
        )  # fmt: skip

    def phase(self) -> dict[str, float]:
        """Megatron's own step has no phases of ours."""
        return {}


class Ours(Variant):
    """Megatron's training step with Bucket-Level MOO."""

    def construct(self, name: str, case: Any) -> None:
        from megatron.training import training

        from megatron_moo.buckets.seam import Seam
        from tests.distributed.ranks import build, make_step

        method, block, rows = _parts(name)
        self.step = make_step(dataclasses.replace(case, method=method, block=block, rows=rows))
        seam = Seam(self.step, lambda: self.args.curr_iteration)
        self.model, self.optimizer, self.scheduler = build(case, self.args)
        self.reduce = seam.exchange
        self.schedule = training.get_forward_backward_func()
        seam.remove()

    def phase(self) -> dict[str, float]:
        """Seconds of the last step in the exchange, the Gramian, the solve and the combination."""
        return {} if self.step.last is None else dict(self.step.last.phase_s)

    @property
    def gramian_values(self) -> int:
        """Values of the one reduction: Gramians, counts, same-objective products."""
        last = self.step.last
        assert last is not None
        return last.gramians.numel() + last.counts.numel() + last.same.numel()


def _parts(name: str) -> tuple[str, str, str]:
    """(method, block, dtype of kept rows) of METHOD[/BLOCK[/DTYPE]]."""
    method, *rest = name.split("/")
    return method, rest[0] if rest else "layer", rest[1] if len(rest) > 1 else "fp32"
