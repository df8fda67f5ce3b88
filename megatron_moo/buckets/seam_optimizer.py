"""The part of the seam that knows Megatron's distributed optimizer: its steps, Adam's moments, and how it resumes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.step import MooStep

_OPTIMIZER = "megatron.core.optimizer.distrib_optimizer"

# As ``PRIVATE_NAMES`` of ``seam.py``, which holds them too.
OPTIMIZER_NAMES: tuple[tuple[str, str], ...] = (
    (_OPTIMIZER, "DistributedOptimizer._set_main_param_and_optimizer_states"),
    (_OPTIMIZER, "DistributedOptimizer._get_main_param_and_optimizer_states"),
    (_OPTIMIZER, "DistributedOptimizer._get_model_param_range_map"),
)


def skip_when_all_dropped(optimizer: Any, step: MooStep) -> None:
    """Report an unsuccessful update, as Megatron does for a loss-scale overflow, when every row was dropped."""
    take = optimizer.step

    def maybe_step() -> tuple:
        if step.last is not None and nothing_left(step.last.dropped, step.last.counts):
            return False, None, None
        return take()

    optimizer.step = maybe_step


def nothing_left(dropped: torch.Tensor, counts: torch.Tensor) -> bool:
    """Whether every objective that the step computed (``counts [K]`` above 0) is among the ``dropped [K]``."""
    return bool(dropped.any()) and bool(dropped[counts > 0].all())


def adam_scale(optimizer: Any, plan: BucketPlan) -> torch.Tensor:
    """Square root of Adam's metric 1 / (sqrt(v) + eps) on this rank's shard of a bucket, ``[shard]`` fp32.

    ``v`` is the second moment, corrected for its start, before the step under way. Where it is zero no gradient has
    ever arrived and Adam's step is not known: such values take no part. Before the first step everything is 1.
    """
    scale = torch.zeros(plan.shard, device=plan.grad.device)
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        group = part.optimizer.param_groups[0]
        for param, (buffer, _, bucket) in part.model_param_gbuf_map.items():
            if part.buffers[buffer].buckets[bucket].grad_data.data_ptr() != plan.grad.data_ptr():
                continue
            place = part._get_model_param_range_map(param)["gbuf_world_in_bucket"]
            state = part._get_main_param_and_optimizer_states(param)
            step = float(state.get("step", group.get("step", 0)))
            first = place.start - plan.rank * plan.shard
            here = scale[first : first + place.size]
            if step == 0:
                here.fill_(1.0)
                continue
            v = state["exp_avg_sq"].flatten() / (1.0 - group["betas"][1] ** step)
            here.copy_(torch.where(v > 0, (v.sqrt() + group["eps"]).rsqrt(), 0.0))
    return scale


def make_resumable(optimizer: Any) -> None:
    """Let Megatron-Core 0.19.2 resume on torch's own Adam (with Apex's or Transformer Engine's it can).

    Loading first asks the new optimizer for the step that its parameters have in common, but a parameter of torch's
    Adam has no state before its first step: give it one. Then it copies every tensor of that state, ``step`` too,
    from a checkpoint that keeps ``step`` elsewhere: say that there is none to copy. Last, it hands one and the same
    step tensor to every parameter, which Adam would then count up once per parameter: give each its own.
    """
    for part in getattr(optimizer, "chained_optimizers", [optimizer]):
        adam = getattr(part, "optimizer", None)
        if not isinstance(adam, torch.optim.Adam | torch.optim.AdamW):
            continue
        for param in (p for group in adam.param_groups for p in group["params"]):
            if not adam.state[param]:
                adam.state[param] = {
                    "step": torch.tensor(0.0),
                    "exp_avg": torch.zeros_like(param),
                    "exp_avg_sq": torch.zeros_like(param),
                }
        put = part._set_main_param_and_optimizer_states
        part._set_main_param_and_optimizer_states = _without_step(put)
        part.load_state_dict = _with_own_steps(part.load_state_dict, adam)


def _without_step(put: Callable[[Any, dict], None]) -> Callable[[Any, dict], None]:
    return lambda param, tensors: put(param, {"step": None, **tensors})


def _with_own_steps(load: Callable[[dict], None], adam: torch.optim.Optimizer) -> Callable[[dict], None]:
    def load_and_part(state_dict: dict) -> None:
        load(state_dict)
        for state in adam.state.values():
            state["step"] = state["step"].clone()

    return load_and_part
