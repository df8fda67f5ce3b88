"""What the ranks of a layout and the single process compute, under ``megatron.training`` itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.modes import make_step_class
from megatron_moo.buckets.placement import global_names, peer_groups
from megatron_moo.buckets.seam import Seam
from megatron_moo.buckets.step import MooStep
from megatron_moo.training.metrics import LossBook
from tests.distributed.case import Case, batch
from tests.distributed.sharding import set_weights


def start(case: Case, alone: bool = False) -> Any:
    """Parse the case's flags and start Megatron in this process; returns its arguments."""
    from megatron.training import initialize
    from megatron.training.arguments import parse_and_validate_args

    from megatron_moo.training import platform
    from megatron_moo.training.arguments import add_moo_arguments

    platform.prepare()
    sys.argv = ["test", *case.argv(alone)]
    args = parse_and_validate_args(extra_args_provider=add_moo_arguments)
    with platform.initialising():
        initialize.initialize_megatron()
    return args


def make_step(case: Case, method: Any = None) -> MooStep:
    from megatron_moo.moo import make_method

    config = MooConfig(
        case.method, case.options, case.block, case.slots, row_dtype=case.rows, seed=case.seed, exclude=case.exclude,
        observe=case.observe, every=case.every, recompute=case.recompute,
        metric=case.metric, wire=case.wire, exchange=case.exchange, ranks_per_node=case.ranks_per_node,
        auto_every=case.auto_every, strength=case.strength,
    )  # fmt: skip
    names = [f"language{k}" for k in range(case.objectives)]
    return make_step_class(case.observe, case.every)(
        config, method or make_method(case.method, **case.options), names, case
    )


def build(case: Case, args: Any) -> tuple[list[Any], Any, Any]:
    """Model chunks, optimizer and scheduler, as ``pretrain()`` builds them, with the agreed weights."""
    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training import training
    from megatron.training.argument_utils import pretrain_cfg_container_from_args

    from megatron_moo.models.gpt import build_model

    model, optimizer, scheduler = training.setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        model_provider_func=partial(build_model, args),
        checkpointing_context={},
        cfg_container=pretrain_cfg_container_from_args(args),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    if not args.load:
        set_weights(model, case)
        optimizer.reload_model_params()
    return model, optimizer, scheduler


def batches_of_rank(case: Case, lane: int, peer: int, start_step: int = 0) -> Iterator[dict]:
    """This rank's micro-batches, step by step, slot by slot."""
    step = start_step
    while True:
        for slot in range(case.slots):
            for micro_batch in range(case.micro_batches):
                yield batch(case, step, slot, lane, peer, micro_batch)
        step += 1


def train_steps(
    case: Case,
    steps: int = 1,
    plain: bool = False,
    method: Any = None,
    broken: str | None = None,
    first: int = 0,
    state: dict[str, Any] | None = None,
    reject_at: int | None = None,
    save: bool = False,
) -> dict[str, Any]:
    """Train on this rank; returns the losses and, per parameter, its name, place and update of the last step.

    ``plain`` trains with Megatron's own reduce-scatter on the same batches. ``broken`` names a trap whose handling is
    taken out (``tests/distributed/traps.py``). ``first`` and ``state`` go on from an earlier run's step and its
    ``state_dict``; with ``--load`` among the flags it goes on from there instead. ``save`` writes a checkpoint
    (``--save``) at the end. Under Megatron's rerun machine the loss of step ``reject_at`` is found wrong, and the step
    runs again.
    """
    if broken is not None:
        from tests.distributed import traps

        getattr(traps, broken)()
    from megatron.core import parallel_state as ps
    from megatron.core.utils import get_model_config
    from megatron.training import get_timers, training

    from megatron_moo.buckets.lanes import find_lanes
    from megatron_moo.training.forward import forward_step

    args = start(case)
    if plain and args.virtual_pipeline_model_parallel_size:
        args.ddp_reduce_scatter_with_fp32_accumulation = False  # Megatron itself fails with it there
    step = make_step(case, method)
    if state is not None:
        step.load_state_dict(state)
    seam = None if plain else Seam(step, lambda: args.curr_iteration)
    if seam is not None:
        seam.carry_state(step.state_dict, step.load_state_dict)
    book = LossBook(case.objectives)
    step.riders.append(lambda: book.take(torch.device("cpu")))
    step.losses_of = lambda riders: riders[0][:, 0] / riders[0][:, 1].clamp(min=1.0)
    model, optimizer, scheduler = build(case, args)
    first = int(args.iteration) if args.load else first
    lanes = find_lanes(peer_groups(ps), ps.get_data_parallel_rank())
    config = get_model_config(model[0])
    config.grad_scale_func, config.timers = optimizer.scale_loss, get_timers()
    if args.overlap_grad_reduce:  # as train() does
        config.no_sync_func = one_or_all([chunk.no_sync for chunk in model])
        if args.align_grad_reduce:
            config.grad_sync_func = one_or_all([chunk.start_grad_sync for chunk in model])
    from megatron.core.distributed import finalize_model_grads

    config.finalize_model_grads_func = finalize_model_grads
    for chunk in model:
        chunk.train()
    iterators = [batches_of_rank(case, lanes.lane, lanes.peer, first) for _ in model]
    if args.rerun_mode != "disabled":
        from megatron.core.rerun_state_machine import RerunDataIterator

        iterators = [RerunDataIterator(iterator) for iterator in iterators]
    data: Any = iterators if len(model) > 1 else iterators[0]
    forward = partial(forward_step, record=lambda _batch: book.add)
    clean = partial(rejected_forward, args, reject_at, forward) if reject_at is not None else forward
    poisoned = partial(poisoned_forward, case, forward) if case.poison else clean
    begun: list[int] = []
    step.on_begin.append(begun.append)
    schedule = training.get_forward_backward_func()
    if args.overlap_param_gather:  # as train() does: the first step's parameters are whole already
        training.disable_forward_pre_hook(model, param_sync=False)
    losses, gramians, weights, norms, objective_losses, receiving = [], [], [], [], [], set()

    def one_pass(iterator: Any, chunk: Any) -> tuple:
        receiving.add(len(seam.exchange._free) if seam else 0)
        bad = case.poison_from <= args.curr_iteration < case.poison_until
        return (poisoned if bad else clean)(iterator, chunk)

    initial = [param.detach().clone() for chunk in model for param in chunk.parameters()]
    for iteration in range(first, first + steps):
        args.curr_iteration = iteration
        losses_reduced, *_, grad_norm, _zeros, _logit = training.train_step(
            one_pass,
            data,
            model,
            optimizer,
            scheduler,
            config,
            schedule,
            iteration,
        )
        losses.append({key: float(value) for key, value in losses_reduced.items()})
        norms.append(None if grad_norm is None else float(grad_norm))
        if step.last is not None:
            gramians.append(step.last.gramians.clone())
            weights.append(step.last.weights.clone())
            objective_losses.append(step.losses_of(step.last.riders))
        if args.overlap_param_gather and iteration == first:
            training.enable_forward_pre_hook(model)
            if args.align_param_gather:
                config.param_sync_func = one_or_all([chunk.start_param_sync for chunk in model])
    if args.overlap_param_gather:
        training.disable_forward_pre_hook(model)
    if save:
        from megatron.training.checkpointing import save_checkpoint

        save_checkpoint(first + steps, model, optimizer, scheduler, 0)
    return {
        "begun": begun,
        "receiving": receiving,
        "moved": max(
            float((param.detach() - before).abs().max())
            for param, before in zip((p for c in model for p in c.parameters()), initial, strict=True)
        ),
        "losses": losses,
        "objective_losses": objective_losses,
        "grad_norms": norms,
        "gramians": gramians,
        "weights": weights,
        "blocks": list(step.block_names),
        "buckets": {} if plain else buckets_of(model),
        "same": None if step.last is None else step.last.same.clone(),
        "dropped": None if step.last is None else step.last.dropped.tolist(),
        "state": step.state_dict(),
        "adam": adam_state(optimizer),
        "grads": own_grads(model),
        "params": {name: param.detach().clone() for c in model for param, name in global_names(c).items()},
        "bytes": seam.exchange.bytes_sent if seam else None,
        "between": seam.exchange.bytes_between_nodes if seam else None,
        "timeouts_s": timeouts_of(step),
    }


def one_or_all(functions: list[Any]) -> Any:
    """Functions of the model chunks as Megatron's schedules take them: the list, or the only one."""
    return functions[0] if len(functions) == 1 else functions


def timeouts_of(step: MooStep) -> set[float]:
    """Seconds after which a collective of ours fails, in each process group that we made."""
    groups = [
        step._world,
        *(getattr(p.hierarchy, kind, None) for p in step.plans for kind in ("inside", "across")),
    ]
    device = torch.device("cpu")
    return {g._get_backend(device).options._timeout.total_seconds() for g in groups if g is not None}


def poisoned_forward(case: Case, forward: Any, data: Any, model: Any) -> tuple:
    """A forward step whose loss is not finite for the objectives in ``case.poison``."""
    batch = next(data)
    output, loss_func = forward(iter([batch]), model)
    if batch["objective"] not in case.poison:
        return output, loss_func

    def spoiled(losses: torch.Tensor) -> tuple:
        loss, tokens, report = loss_func(losses)
        return loss * case.poison_with, tokens, report

    return output, spoiled


def rejected_forward(args: Any, reject_at: int, forward: Any, data: Any, model: Any) -> tuple:
    """A forward step in which a check of a team's own finds the loss of one step wrong (it is not fatal)."""
    from megatron.core.rerun_state_machine import get_rerun_state_machine

    output, loss_func = forward(data, model)

    def checked(losses: torch.Tensor) -> tuple:
        result = loss_func(losses)
        get_rerun_state_machine().validate_result(
            result[0].detach(), lambda _loss: args.curr_iteration == reject_at, "a check", fatal=False
        )
        return result

    return output, checked


def adam_state(optimizer: Any) -> list[torch.Tensor]:
    """First and second moments of this rank's shards."""
    return [
        tensor.clone()
        for part in optimizer.chained_optimizers
        for state in part.optimizer.state.values()
        for key, tensor in sorted(state.items())
        if key != "step"
    ]


def buckets_of(model: list[Any]) -> dict[str, str]:
    """Name of the bucket that holds each parameter of this rank."""
    from megatron.core import parallel_state as ps

    from megatron_moo.buckets.placement import bucket_groups

    stage, found = ps.get_pipeline_model_parallel_rank(), {}
    for number, chunk in enumerate(model):
        names = global_names(chunk)
        for index, group in enumerate(bucket_groups([chunk])):
            for part, bucket in enumerate(group.buckets):
                for param in bucket.params_list:
                    found[names[param]] = f"stage{stage}.chunk{number}.bucket{index}.{part}"
    return found


def own_grads(model: list[Any]) -> list[dict[str, Any]]:
    """What this rank owns of the update: per parameter its place in the whole and the values of its shard."""
    from megatron.core import parallel_state as ps

    from megatron_moo.buckets.placement import bucket_groups

    pieces = []
    for chunk in model:
        names = global_names(chunk)
        for group in bucket_groups([chunk]):
            rank, size = (
                group.intra_distributed_optimizer_instance_rank,
                group.intra_distributed_optimizer_instance_size,
            )
            for bucket in group.buckets:
                shard = bucket.grad_data.numel() // size
                low, high = rank * shard, (rank + 1) * shard
                for param, (start_, end) in bucket.param_to_index.items():
                    first, last = max(start_, low), min(end, high)
                    if first >= last:
                        continue
                    expert = not getattr(param, "allreduce", True)
                    pieces.append(
                        {
                            "name": names[param],
                            "values": bucket.grad_data[first:last].float().clone(),
                            "range": (first - start_, last - start_),
                            "shape": tuple(param.shape),
                            "sharded": bool(getattr(param, "tensor_model_parallel", False)),
                            "dim": getattr(param, "partition_dim", -1),
                            "gated": chunk.config.gated_linear_unit and "linear_fc1" in names[param],
                            "tp": ps.get_expert_tensor_parallel_rank()
                            if expert
                            else ps.get_tensor_model_parallel_rank(),
                            "tied": bool(getattr(param, "shared_embedding", False)),
                        }
                    )
    return pieces


def layout_worker(rank: int, world: int, case: Case, **kw: Any) -> dict[str, Any]:
    """Entry point of a pool rank."""
    return train_steps(case, **kw)


def reference_worker(
    rank: int,
    world: int,
    case: Case,
    step: int = 0,
    weights: torch.Tensor | None = None,
    buckets: dict[str, str] | None = None,
    metric: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """K backward passes on the whole model in one process: rows, Gramians, weights and update of a step.

    ``weights`` ``[B, K]`` take the place of the method's; ``buckets`` names the bucket of each parameter, which a
    single process cannot know; ``metric`` weighs the values of each parameter in Gramians.
    """
    from megatron_moo.models.gpt import build_model

    args = start(case, alone=True)
    model = build_model(args)
    if args.bf16:
        from megatron.core.transformer.module import Float16Module

        model = Float16Module(model.config, model)
    model.train()

    class Chunk:  # global_names and set_weights read a wrapped chunk
        module, config = model, model.config

    set_weights([Chunk], case)
    names = {name: param for param, name in global_names(Chunk).items()}
    rows, tokens = rows_of_step(case, model, names, step)
    return solved(case, rows, tokens, step, weights, buckets or {}, metric)


def solved(
    case: Case,
    rows: list[dict[str, torch.Tensor]],
    tokens: torch.Tensor,
    step: int,
    weights: torch.Tensor | None = None,
    buckets: Mapping[str, str] = MappingProxyType({}),
    metric: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, Any]:
    """Gramians, weights and update of the whole model, from whole rows by parameter name."""
    from megatron_moo.buckets.blocks import EXCLUDED, block_of, natural_key
    from megatron_moo.moo import make_method

    blocks: dict[str, list[str]] = {}
    for name in rows[0]:
        blocks.setdefault(block_of(name, case.block, buckets.get(name, ""), case.exclude), []).append(name)
    order = sorted(blocks, key=natural_key)
    stacked = {
        block: torch.stack([torch.cat([row[n].flatten() for n in blocks[block]]) for row in rows]).double()
        for block in order
    }
    measure = {
        block: torch.cat(
            [(metric[n] if metric else torch.ones_like(rows[0][n])).flatten() for n in blocks[block]]
        )
        for block in order
    }
    gramians = torch.stack([stacked[b] * measure[b].double() @ stacked[b].T for b in order])
    method = make_method(case.method, **case.options)
    if weights is None:
        weights = method(gramians, tokens=tokens, preference=None, step=step, block=order)
    if EXCLUDED in order:
        weights[order.index(EXCLUDED)] = 1.0 / case.objectives
    update = {
        name: sum(w * row[name].double() for w, row in zip(weights[order.index(block)], rows, strict=True))
        for block in order
        for name in blocks[block]
    }
    return {
        "blocks": order,
        "members": blocks,
        "gramians": gramians,
        "weights": weights,
        "update": update,
        "norm": {block: float(stacked[block].norm()) for block in order},
    }


def rows_of_step(
    case: Case, model: Any, names: dict[str, Any], step: int
) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor]:
    """Mean gradient of every objective over its tokens (or its micro-batches), and what it was averaged over."""
    sums = [
        {name: torch.zeros_like(param, dtype=torch.float32) for name, param in names.items()}
        for _ in range(case.objectives)
    ]
    amount = torch.zeros(case.objectives, dtype=torch.float64)
    per_token = "--mean-per-micro-batch" not in case.flags
    for slot in range(case.slots):
        for lane in range(case.lanes):
            objective = case.assignment(step)[slot][lane]
            if objective in case.poison and step >= case.poison_from:
                continue
            for peer in range(case.peers):
                for micro_batch in range(case.micro_batches):
                    item = batch(case, step, slot, lane, peer, micro_batch)
                    losses = model(item["tokens"], item["position_ids"], None, labels=item["labels"])
                    loss, count = (losses * item["loss_mask"]).sum(), item["loss_mask"].sum()
                    if not per_token:
                        loss, count = loss / count, torch.tensor(1.0)
                    grads = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
                    for name, grad in zip(names, grads, strict=True):
                        if grad is not None:
                            sums[objective][name] += grad
                    amount[objective] += float(count)
    rows = [
        {name: g / amount[k].clamp(min=1e-30).float() for name, g in row.items()}
        for k, row in enumerate(sums)
    ]
    return rows, amount
