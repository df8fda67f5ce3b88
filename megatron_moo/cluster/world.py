"""What a pipeline stage would hold: the real modules, built without memory, in a world that is not there.

They are built on torch's ``meta`` device, with the process groups of Megatron's own ``initialize_model_parallel`` over
torch's ``fake`` backend. So names, shapes, sharding, buckets and their padding are Megatron's, not a formula's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from megatron_moo.cluster.settle import quietly, refusals
from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Buffer:
    """One gradient buffer of a rank.

    Attributes:
        buckets: values of every bucket, padding included.
        members: global ranks that hold the other shards, this rank among them.
        expert: whether it is the experts'.
    """

    buckets: tuple[int, ...]
    members: tuple[int, ...]
    expert: bool

    @property
    def values(self) -> int:
        return sum(self.buckets)


@dataclass(frozen=True)
class Stage:
    """What the first rank of a pipeline stage holds.

    Attributes:
        rank: its global rank.
        stage: its pipeline stage.
        parameters: values of all its parameters, frozen ones too.
        frozen: values that do not train.
        buffers: its gradient buffers.
        instances: distributed-optimizer instances.
    """

    rank: int
    stage: int
    parameters: int
    frozen: int
    buffers: tuple[Buffer, ...]
    instances: int

    @property
    def gradient_values(self) -> int:
        return sum(buffer.values for buffer in self.buffers)


def stages(args: Any) -> list[Stage]:
    """Every pipeline stage of the layout that Megatron's validated arguments describe.

    Raises:
        MooError: where this process already has a process group, or Megatron refuses the model.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        raise MooError("this process is a rank of something", "plan", "call it in a process of its own")
    size = args.world_size // args.pipeline_model_parallel_size
    found = []
    for stage in range(args.pipeline_model_parallel_size):
        with refusals(args), _world(args, stage * size), quietly():
            found.append(_stage(args, stage * size, stage))
    return found


def total_parameters(args: Any) -> int:
    """Parameters of the whole model: that of one rank with nothing cut.

    Raises:
        MooError: where Megatron refuses the model.
    """
    import copy

    whole = copy.copy(args)
    whole.world_size = whole.data_parallel_size = 1
    for name in ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor"):
        setattr(whole, f"{name}_parallel_size", 1)
    whole.virtual_pipeline_model_parallel_size, whole.sequence_parallel = None, False
    whole.num_distributed_optimizer_instances = 1
    with refusals(args), _world(whole, 0), quietly():
        return sum(param.numel() for chunk in _chunks(whole) for param in chunk.parameters())


@contextlib.contextmanager
def _world(args: Any, rank: int) -> Iterator[None]:
    """Megatron's process groups as ``rank`` would see them; nothing is sent."""
    import torch.distributed as dist
    from megatron.core import parallel_state as ps
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=args.world_size)
    try:
        with quietly():
            ps.initialize_model_parallel(
                args.tensor_model_parallel_size,
                args.pipeline_model_parallel_size,
                args.virtual_pipeline_model_parallel_size,
                context_parallel_size=args.context_parallel_size,
                expert_model_parallel_size=args.expert_model_parallel_size,
                num_distributed_optimizer_instances=args.num_distributed_optimizer_instances,
                expert_tensor_parallel_size=args.expert_tensor_parallel_size,
                order="tp-cp-ep-pp-dp" if args.use_tp_pp_dp_mapping else "tp-cp-ep-dp-pp",
                create_gloo_process_groups=False,
            )
            model_parallel_cuda_manual_seed(1234, force_reset_rng=True)
        yield
    finally:
        ps.destroy_model_parallel()
        dist.destroy_process_group()


def _chunks(args: Any) -> list[Any]:
    from megatron.core import parallel_state as ps
    from megatron.training.argument_utils import core_transformer_config_from_args

    from megatron_moo.models.gpt import build_model

    virtual = args.virtual_pipeline_model_parallel_size
    chunks = []
    for number in range(virtual or 1):
        config = core_transformer_config_from_args(args)
        stage = number if virtual else None
        with torch.device("meta"):
            chunks.append(
                build_model(
                    args,
                    ps.is_pipeline_first_stage(ignore_virtual=False, vp_stage=stage),
                    ps.is_pipeline_last_stage(ignore_virtual=False, vp_stage=stage),
                    vp_stage=stage,
                    config=config,
                )
            )
    return chunks


def _stage(args: Any, rank: int, stage: int) -> Stage:
    from megatron.core import parallel_state as ps

    chunks = _chunks(args)
    dtype = args.params_dtype
    for chunk in chunks:
        chunk.to(dtype)
    params = [param for chunk in chunks for param in chunk.parameters()]
    buffers = [
        buffer
        for number, chunk in enumerate(chunks)
        for buffer in _buffers(args, chunk, bool(number or stage), ps)
    ]
    return Stage(
        rank,
        stage,
        sum(param.numel() for param in params),
        sum(param.numel() for param in params if not param.requires_grad),
        tuple(buffers),
        args.num_distributed_optimizer_instances,
    )


def _buffers(args: Any, chunk: Any, one_bucket: bool, ps: Any) -> Iterator[Buffer]:
    """Buckets as Megatron lays them out (one for a later stage or chunk, as its ``get_model`` does)."""
    import torch.distributed as dist
    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.training.training import get_megatron_ddp_config, resolve_ddp_bucket_size

    dense = ps.get_data_parallel_group(with_context_parallel=True, partial_data_parallel=True)
    expert = ps.get_expert_data_parallel_group(partial_expert_data_parallel=True)
    settings = get_megatron_ddp_config(args)
    whole = ps.get_data_parallel_group(with_context_parallel=True)
    count = sum(param.numel() for param in chunk.parameters())
    size = resolve_ddp_bucket_size(settings, whole, settings.overlap_grad_reduce, count)
    layouts = DistributedOptimizer.compute_full_param_layout(
        [param for param in chunk.parameters() if param.requires_grad],
        None if one_bucket else size,
        dense.size(),
        settings,
        expert.size(),
    ).layouts
    for key, layout in layouts.items():
        group = expert if key.is_expert_parallel else dense
        values = tuple(end - start for start, end in layout.bucket_indices)
        yield Buffer(values, tuple(dist.get_process_group_ranks(group)), key.is_expert_parallel)
