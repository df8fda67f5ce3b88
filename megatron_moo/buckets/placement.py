"""What a rank holds of the model: lanes' peers, global names, and every bucket's place in the blocks.

Read off Megatron's DDP-wrapped chunks and process groups; nothing is changed here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import (
    EXCLUDED,
    BucketPlan,
    Kind,
    Placed,
    block_of,
    natural_key,
    segments_of_shard,
)
from megatron_moo.buckets.lanes import Lanes
from megatron_moo.errors import MooError

# Attribute of a parameter whose gradient Megatron averages over tensor-parallel ranks (indexers of sparse attention).
AVERAGED = "average_gradients_across_tp_domain"
WHY_AVERAGED = "every rank's gradient is another, and Megatron averages them after the rows were combined"


def bucket_groups(chunks: Sequence[Any]) -> Iterator[Any]:
    """Every bucket group of the DDP-wrapped model chunks."""
    for chunk in chunks:
        yield from chunk.bucket_groups
        yield from chunk.expert_parallel_bucket_groups


def peer_groups(ps: Any) -> list[list[int]]:
    """Global ranks of the groups whose members must see the same data."""
    groups = [
        ps.get_tensor_model_parallel_group(),
        ps.get_pipeline_model_parallel_group(),
        ps.get_context_parallel_group(check_initialized=False),
        ps.get_expert_model_parallel_group(check_initialized=False),
        ps.get_expert_tensor_parallel_group(check_initialized=False),
        _instance_group(ps),
    ]
    return [dist.get_process_group_ranks(group) for group in groups if group is not None]


def group_timeout() -> timedelta:
    """Time-out of a process group of ours: Megatron's (``--distributed-timeout-minutes``).

    torch's own default for a new group is another one: 10 minutes with NCCL, 30 with gloo.
    """
    from megatron.training import get_args

    return timedelta(minutes=get_args().distributed_timeout_minutes)


def _instance_group(ps: Any) -> Any:
    """Owners of the same shard in all distributed-optimizer instances, or None when there is one instance."""
    group = ps.get_inter_distributed_optimizer_instance_group(check_initialized=False)
    return group if group is not None and group.size() > 1 else None


def global_names(chunk: Any, frozen: bool = False) -> dict[torch.nn.Parameter, str]:
    """Names of a chunk's trainable parameters with layers and experts counted over the whole model.

    Args:
        chunk: DDP-wrapped model chunk.
        frozen: name the frozen ones too.
    """
    from megatron.core import parallel_state as ps

    module = chunk.module
    renames: list[tuple[str, str]] = []
    experts: dict[str, int] = {}
    for name, child in module.named_modules():
        if (number := getattr(child, "layer_number", None)) and re.search(r"\blayers\.\d+$", name):
            renames.append((name + ".", re.sub(r"\d+$", str(number - 1), name) + "."))
        if hasattr(child, "local_experts") and hasattr(child, "num_local_experts"):
            experts[name] = ps.get_expert_model_parallel_rank() * child.num_local_experts
    found = {}
    for name, param in module.named_parameters():
        if not (param.requires_grad or frozen):
            continue
        for prefix, first in experts.items():
            if match := re.match(re.escape(prefix) + r"\.local_experts\.(\d+)\.(.*)$", name):
                name = f"{prefix}.local_experts.{first + int(match[1])}.{match[2]}"
        for old, new in renames:
            if name.startswith(old):
                name = new + name[len(old) :]
                break
        name = name.removeprefix("module.")
        # An output layer tied over pipeline stages is the embedding: one block, one name.
        if name == "output_layer.weight" and getattr(param, "shared_embedding", False):
            name = "embedding.word_embeddings.weight"
        found[param] = name
    return found


def refuse_averaged(named: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
    """Refuse trainable parameters with the attribute :data:`AVERAGED`.

    Raises:
        MooError: naming the parameter and the attribute.
    """
    for name, param in named:
        if param.requires_grad and getattr(param, AVERAGED, False):
            raise MooError(f"{AVERAGED} does not work with MOO: {WHY_AVERAGED}", name, "take its layers out")


def plan_buckets(
    chunks: Sequence[Any], block: str, lanes: Lanes, exclude: str | None = None
) -> tuple[list[BucketPlan], list[str], str]:
    """This rank's buckets, the whole model's block names, and a hash of which parameter is in which block.

    A collective call.

    Args:
        chunks: DDP-wrapped model chunks.
        block: kind of block (``MooConfig.block``).
        lanes: lanes of the world.
        exclude: regular expression of parameters that stay at the plain mean.

    Raises:
        MooError: when ``exclude`` is found in no parameter of the model.
    """
    from megatron.core import parallel_state as ps

    stage = ps.get_pipeline_model_parallel_rank()
    named: list[tuple[str, Any, Any, list[Placed]]] = []
    for number, chunk in enumerate(chunks):
        names = global_names(chunk)
        for index, group in enumerate(bucket_groups([chunk])):
            for part, bucket in enumerate(group.buckets):
                placed = [
                    Placed(names[param], start, end, _kind_of(param, names[param], chunk, ps))
                    for param, (start, end) in bucket.param_to_index.items()
                ]
                named.append((f"stage{stage}.chunk{number}.bucket{index}.{part}", group, bucket, placed))
    local = {
        (block_of(item.name, block, bucket, exclude), item.name)
        for bucket, _, _, placed in named
        for item in placed
    }
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, sorted(local))
    pairs = sorted({pair for pairs in everyone for pair in pairs})
    blocks = sorted({name for name, _ in pairs}, key=natural_key)
    if exclude is not None and EXCLUDED not in blocks:
        near = ", ".join(sorted(member for _, member in pairs)[:2])
        raise MooError(f"{exclude!r} is found in no parameter", "--moo-exclude", f"names are like {near}")
    index_of = {name: index for index, name in enumerate(blocks)}
    plans = []
    for name, group, bucket, placed in named:
        members = dist.get_process_group_ranks(group.intra_distributed_optimizer_instance_group)
        rank = group.intra_distributed_optimizer_instance_rank
        shard = bucket.grad_data.numel() // len(members)
        block_index = {item.name: index_of[block_of(item.name, block, name, exclude)] for item in placed}
        segments = segments_of_shard(placed, (rank * shard, (rank + 1) * shard), block_index)
        whole = segments_of_shard(placed, (0, bucket.grad_data.numel()), block_index)
        member_lanes = tuple(lanes.of_rank[member] for member in members)
        plans.append(
            BucketPlan(
                name,
                bucket.grad_data,
                rank,
                member_lanes,
                segments,
                whole,
                _instance_group(ps),
                tuple(members),
            )
        )
    return plans, blocks, hashlib.sha256(repr(pairs).encode()).hexdigest()[:16]


def _kind_of(param: torch.nn.Parameter, name: str, chunk: Any, ps: Any) -> Kind:
    config = chunk.config
    expert = not getattr(param, "allreduce", True)
    refuse_averaged([(name, param)])
    instances = _instance_group(ps)
    if instances is not None and instances.rank() != 0:
        return Kind.COPY
    rank, size = ps.get_tensor_model_parallel_rank(), ps.get_tensor_model_parallel_world_size()
    if expert:
        rank, size = ps.get_expert_tensor_parallel_rank(), ps.get_expert_tensor_parallel_world_size()
    if getattr(param, "shared_embedding", False) and ps.get_pipeline_model_parallel_world_size() > 1:
        return Kind.PARTIAL_EMBD
    if size == 1 or getattr(param, "tensor_model_parallel", False):
        return Kind.OWN
    partial_sum = (config.sequence_parallel and getattr(param, "sequence_parallel", False)) or (
        config.qk_layernorm and re.search(r"[qk]_layernorm", name)
    )
    if partial_sum and not expert:
        return Kind.PARTIAL_TP
    return Kind.OWN if rank == 0 else Kind.COPY
