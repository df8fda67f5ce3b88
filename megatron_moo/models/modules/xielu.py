"""MLP with xIELU (Huang and Schlag 2024, arXiv 2411.13010), whose two scalars are learnt in every layer (Apertus)."""

from __future__ import annotations

import math
from typing import Any

import torch
from megatron.core.tensor_parallel import copy_to_tensor_model_parallel_region
from megatron.core.transformer.mlp import MLP
from torch import Tensor
from torch.nn import functional

BETA, EPS, START = 0.5, -1e-6, 0.8


class Xielu(torch.nn.Module):
    """``a_p x^2 + b x`` for positive x, ``a_n (exp(min(x, eps)) - 1 - x) + b x`` otherwise.

    a_p and a_n are softplus of what is stored, a_n plus b; b = 0.5. Every tensor-parallel rank holds both; their
    gradients are summed over the ranks in the backward pass.
    """

    def __init__(self, config: Any, tp_group: Any) -> None:
        super().__init__()
        self.tp_group = tp_group
        dtype = config.params_dtype
        self.alpha_p = torch.nn.Parameter(torch.full((1,), math.log(math.expm1(START)), dtype=dtype))
        self.alpha_n = torch.nn.Parameter(torch.full((1,), math.log(math.expm1(START - BETA)), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Element by element; same shape and dtype."""
        stored_p, stored_n = (
            copy_to_tensor_model_parallel_region(alpha, group=self.tp_group)
            for alpha in (self.alpha_p, self.alpha_n)
        )
        alpha_p, alpha_n = functional.softplus(stored_p), BETA + functional.softplus(stored_n)
        low = x.clamp(max=torch.tensor(EPS, dtype=x.dtype).item())
        return torch.where(x > 0, alpha_p * x * x + BETA * x, (torch.expm1(low) - x) * alpha_n + BETA * x)

    def sharded_state_dict(self, prefix: str = "", sharded_offsets: tuple = (), metadata: Any = None) -> dict:
        """Every tensor-parallel rank holds a copy."""
        from megatron.core.transformer.utils import (
            ensure_metadata_has_dp_cp_group,
            make_sharded_tensors_for_checkpoint,
        )

        groups = ensure_metadata_has_dp_cp_group(metadata)
        return make_sharded_tensors_for_checkpoint(
            dict(self.named_parameters()), prefix, {}, sharded_offsets,
            tp_group=self.tp_group, dp_cp_group=groups["dp_cp_group"],
        )  # fmt: skip


class XieluMLP(MLP):
    """Up projection, xIELU, down projection."""

    def __init__(self, config: Any, *args: Any, **kw: Any) -> None:
        super().__init__(config, *args, **kw)
        self.activation_func = Xielu(config, self.tp_group)
