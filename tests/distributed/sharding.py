"""Between a rank's part of a parameter and the whole of it, written without Megatron's own resharding."""

from __future__ import annotations

from typing import Any

import torch

from megatron_moo.buckets.placement import global_names
from tests.distributed.case import Case, full_weight


def is_gated(name: str, config: Any) -> bool:
    return config.gated_linear_unit and "linear_fc1" in name


def part(whole: torch.Tensor, name: str, param: Any, config: Any, rank: int, size: int) -> torch.Tensor:
    """Tensor-parallel rank's part of a whole parameter. A gated layer holds [gate; up] on every rank."""
    if size == 1 or not getattr(param, "tensor_model_parallel", False):
        return whole
    dim = param.partition_dim
    halves = whole.chunk(2, dim) if is_gated(name, config) else (whole,)
    return torch.cat([half.chunk(size, dim)[rank] for half in halves], dim)


def join(parts: list[torch.Tensor], name: str, sharded: bool, dim: int, gated: bool) -> torch.Tensor:
    """Whole parameter from its tensor-parallel parts."""
    if not sharded:
        return parts[0]
    if not gated:
        return torch.cat(parts, dim)
    halves = [p.chunk(2, dim) for p in parts]
    return torch.cat([torch.cat([h[i] for h in halves], dim) for i in range(2)], dim)


def set_weights(chunks: list[Any], case: Case) -> None:
    """Give every parameter of the (wrapped) chunks its part of the agreed whole."""
    from megatron.core import parallel_state as ps

    agreed: dict[str, torch.Tensor] = {}  # the rest, adapters among them, comes from the names
    if case.weights == "transformers":
        from tests.distributed.llama import tiny_llama, to_megatron

        agreed = to_megatron(dict(tiny_llama(case).named_parameters()), case)
    for chunk in chunks:
        config = chunk.config
        for param, name in global_names(chunk, frozen=True).items():
            expert = not getattr(param, "allreduce", True)
            rank, size = ps.get_tensor_model_parallel_rank(), ps.get_tensor_model_parallel_world_size()
            if expert:
                rank, size = ps.get_expert_tensor_parallel_rank(), ps.get_expert_tensor_parallel_world_size()
            shape = list(param.shape)
            if getattr(param, "tensor_model_parallel", False):
                shape[param.partition_dim] *= size
            whole = agreed.get(name)
            if whole is None:
                whole = full_weight(name, tuple(shape), case.seed)
            with torch.no_grad():
                param.copy_(part(whole, name, param, config, rank, size))
