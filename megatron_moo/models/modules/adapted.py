"""Megatron's parallel linear layers with a low-rank adapter beside them (LoRA, Hu et al. 2021).

The layer computes W x + (alpha / r) B A dropout(x). Which factor is cut follows the base layer, and what crosses
tensor-parallel ranks is the r values in the middle, never a whole activation:

    column (linear_qkv, linear_fc1)   A whole on every rank          B cut by rows, like W
    row    (linear_proj, linear_fc2)  A cut by columns, like W       B whole on every rank

Without sequence parallelism the middle is all-reduced (column: in the backward pass, row: in the forward pass), so
the gradient of the whole factor is the same on every rank. With it a rank sees a slice of the sequence, so that
gradient is a partial sum: the ``sequence_parallel`` mark makes Megatron's finalize add it up, and MOO sum a copy.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    ColumnParallelLinear,
    RowParallelLinear,
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    get_cuda_rng_tracker,
    reduce_from_tensor_model_parallel_region,
    reduce_scatter_to_sequence_parallel_region,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.mlp import apply_swiglu_sharded_factory
from megatron.core.transformer.utils import make_sharded_tensors_for_checkpoint
from torch.nn import functional

from megatron_moo.models.lora import LoraSettings

FACTORS = ("lora_A", "lora_B")


class _Adapted:
    """What both kinds share. Mixed into a layer of Megatron's whose class is exchanged by :func:`adapt_linear`.

    Attributes:
        lora_A: ``[r, in]``, a rank's columns of it in a row-parallel layer.
        lora_B: ``[out, r]``, a rank's rows of it in a column-parallel layer.
        lora_scale: alpha / r.
        lora_stored: whether the checkpoint that is read next holds the adapter.
    """

    # Dimension of a parameter that tensor parallelism cuts; the factor that is missing here is whole on every rank.
    cut: dict[str, int]

    def add_adapter(self: Any, settings: LoraSettings, name: str, gated: bool) -> None:
        """Add the factors: A as PEFT draws it, from ``name`` alone and so the same at every layout; B zero."""
        size, rank = self.tp_group.size(), self.tp_group.rank()
        whole_a = initial_a((settings.rank, self.input_size), settings.seed, name)
        whole_b = torch.zeros(self.output_size, settings.rank)
        self.lora_scale, self.lora_dropout, self.lora_gated = settings.scale, settings.dropout, gated
        self.lora_stored = True
        for factor, whole in zip(FACTORS, (whole_a, whole_b), strict=True):
            dim = self.cut.get(factor)
            part = whole if dim is None else whole.chunk(size, dim)[rank]
            param = torch.nn.Parameter(part.to(self.weight.device, self.weight.dtype).contiguous())
            set_tensor_model_parallel_attributes(param, dim is not None, -1 if dim is None else dim, 1)
            setattr(param, "sequence_parallel", dim is None and self.sequence_parallel)  # noqa: B010
            self.register_parameter(factor, param)
        self._register_load_state_dict_pre_hook(self._accept_base)

    def _accept_base(self: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        """Let a checkpoint of the base model be loaded: the adapter stays as it is, and is stored from now on."""
        if not self.lora_stored:
            for factor in FACTORS:
                state_dict[prefix + factor] = getattr(self, factor).detach()
            self.lora_stored = True

    def dropped(self: Any, x: torch.Tensor, sharded: bool) -> torch.Tensor:
        """``x`` after the adapter's dropout; ranks with different values draw differently."""
        if not (self.lora_dropout and self.training):
            return x
        # Under sequence parallelism Megatron's block has switched to the ranks' own random states already.
        own = sharded and not self.sequence_parallel
        with get_cuda_rng_tracker().fork() if own else contextlib.nullcontext():
            return functional.dropout(x, self.lora_dropout)

    def sharded_state_dict(
        self: Any, prefix: str = "", sharded_offsets: tuple = (), metadata: dict | None = None
    ) -> dict[str, Any]:
        """The layer's own entries and, if stored, the factors, cut as the class says."""
        state = self.state_dict(prefix="", keep_vars=True)
        if not self.lora_stored:
            state = {key: value for key, value in state.items() if key not in FACTORS}
        groups = {"tp_group": self.tp_group, "dp_cp_group": metadata["dp_cp_group"] if metadata else None}
        sharded = make_sharded_tensors_for_checkpoint(state, prefix, self.cut, sharded_offsets, **groups)
        key = f"{prefix}lora_B"
        if self.lora_gated and key in sharded:
            # A rank holds [gate; up] rows: stored as the whole [gate; up], as Megatron stores the weight.
            singleton = bool((metadata or {}).get("singleton_local_shards", False))
            sharded[key] = apply_swiglu_sharded_factory(
                sharded[key],
                sharded_offsets,
                singleton,
                tp_group=self.tp_group,
                dp_group=groups["dp_cp_group"],
            )
        return sharded


class AdaptedColumnParallelLinear(_Adapted, ColumnParallelLinear):
    """``ColumnParallelLinear`` with an adapter."""

    cut = {"weight": 0, "bias": 0, "lora_B": 0}  # noqa: RUF012

    def forward(
        self,
        input_: torch.Tensor,
        weight: torch.Tensor | None = None,
        runtime_gather_output: bool | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Input ``[s, b, in]`` (``[s/tp, b, in]`` under sequence parallelism) to ``[s, b, out/tp]`` and the bias."""
        output, bias = super().forward(input_, weight, runtime_gather_output)
        middle = functional.linear(self.dropped(input_, sharded=self.sequence_parallel), self.lora_A)
        if self.sequence_parallel:
            middle = gather_from_sequence_parallel_region(middle, group=self.tp_group)
        else:
            middle = copy_to_tensor_model_parallel_region(middle, group=self.tp_group)
        return output + self.lora_scale * functional.linear(middle, self.lora_B), bias


class AdaptedRowParallelLinear(_Adapted, RowParallelLinear):
    """``RowParallelLinear`` with an adapter."""

    cut = {"weight": 1, "lora_A": 1}  # noqa: RUF012

    def forward(self, input_: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Input ``[s, b, in/tp]`` to ``[s, b, out]`` (``[s/tp, b, out]`` under sequence parallelism) and the bias."""
        output, bias = super().forward(input_)
        sharded = self.tp_group.size() > 1
        middle = functional.linear(self.dropped(input_, sharded), self.lora_A)
        if self.sequence_parallel and sharded:
            middle = reduce_scatter_to_sequence_parallel_region(middle, group=self.tp_group)
        else:
            middle = reduce_from_tensor_model_parallel_region(middle, group=self.tp_group)
        return output + self.lora_scale * functional.linear(middle, self.lora_B), bias


_ADAPTED: dict[type, type] = {
    ColumnParallelLinear: AdaptedColumnParallelLinear,
    RowParallelLinear: AdaptedRowParallelLinear,
}


def adapt_linear(linear: Any, settings: LoraSettings, name: str, gated: bool) -> bool:
    """Put an adapter beside a linear layer, in place; the base parameters keep their names.

    Args:
        linear: a layer of Megatron's local implementation.
        settings: rank, alpha, dropout and seed.
        name: name of the layer in the whole model; A is drawn from it.
        gated: whether the rows are [gate; up] on every tensor-parallel rank.

    Returns:
        False for a layer of another class, or one of an expert, which stays as it is.
    """
    adapted = _ADAPTED.get(type(linear))
    if adapted is None or linear.is_expert:
        return False
    linear.__class__ = adapted
    linear.add_adapter(settings, name, gated)
    return True


def initial_a(shape: tuple[int, int], seed: int, name: str) -> torch.Tensor:
    """Kaiming-uniform with a = sqrt(5), as PEFT starts A: uniform in +-1 / sqrt(in), fp32 ``[r, in]``."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return (torch.rand(shape, generator=generator, device="cpu") * 2 - 1) / math.sqrt(shape[1])
