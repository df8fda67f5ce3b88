"""RMSNorm over all heads of q or k (OLMo 2 and 3), whose heads lie on different tensor-parallel ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class SumOverRanks(torch.autograd.Function):
    """All-reduce, and all-reduce again in the backward pass: every rank's output depends on every rank's input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = x.clone()
        dist.all_reduce(out, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.contiguous().clone()
        dist.all_reduce(out, group=ctx.group)
        return out, None


class WideNorm(torch.nn.Module):
    """RMSNorm over the last two dimensions of ``[s, b, heads / tp, head]``, all ranks' heads together.

    Args:
        config: Megatron's ``TransformerConfig``.
        heads: heads of the whole model.
        group: tensor-parallel ranks.

    Raises:
        ValueError: when the heads do not divide over the ranks.
    """

    def __init__(self, config: Any, heads: int, group: Any) -> None:
        super().__init__()
        if heads % group.size():
            raise ValueError(f"{heads} heads do not divide over {group.size()} tensor-parallel ranks")
        self.eps, self.width, self.group = config.layernorm_epsilon, heads * config.kv_channels, group
        size = self.width // group.size()
        self.weight = torch.nn.Parameter(torch.ones(size, dtype=config.params_dtype))
        self.weight.tensor_model_parallel = True  # type: ignore[attr-defined]
        self.weight.partition_dim = 0  # type: ignore[attr-defined]
        self.weight.partition_stride = 1  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """Normalise; same shape and dtype."""
        flat = x.flatten(-2).float()
        squares = flat.pow(2).sum(-1, keepdim=True)
        if self.group.size() > 1:
            squares = SumOverRanks.apply(squares, self.group)
        normed = flat * torch.rsqrt(squares / self.width + self.eps)
        return (self.weight * normed).to(x.dtype).view(x.shape)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict:
        """The weight is cut over tensor-parallel ranks."""
        from megatron.core.transformer.utils import (
            ensure_metadata_has_dp_cp_group,
            make_sharded_tensors_for_checkpoint,
        )

        groups = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            {"weight": self.weight}, prefix, {"weight": 0}, sharded_offsets,
            tp_group=self.group, dp_cp_group=groups["dp_cp_group"],
        )  # fmt: skip
