"""Core attention with document masks, windows and context parallelism.

Megatron's local ``DotProductAttention`` has no context parallelism and replaces the mask it is given when a
window is set. This one gathers keys and values over the context-parallel group and masks by position in the
whole sequence.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch.nn import functional


def has_window(config: Any, layer_number: int) -> bool:
    """Whether a layer (counted from 1) has sliding-window attention."""
    from megatron.core.transformer.utils import is_layer_window_attention

    return is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)


class GatherSequence(torch.autograd.Function):
    """All-gather along the first dimension; the backward pass reduce-scatters."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        out = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.group)
        return out, None


def zigzag_positions(length: int, size: int, device: torch.device) -> torch.Tensor:
    """Positions that every context-parallel rank holds, ``[size, length // size]``.

    Megatron cuts a sequence into 2 x size chunks and gives rank r the chunks r and 2 x size - 1 - r, so that
    a causal mask costs every rank the same.
    """
    chunks = torch.arange(length, device=device).view(2 * size, -1)
    return torch.stack([torch.cat([chunks[r], chunks[2 * size - 1 - r]]) for r in range(size)])


class CoreAttention(torch.nn.Module):
    """Softmax attention between the projections.

    Args are those that Megatron's ``SelfAttention`` passes to a core attention.

    ``forward`` takes query ``[s/cp, b, heads/tp, d]``, key and value ``[s/cp, b, groups/tp, d]`` and an
    optional boolean mask ``[b or 1, 1, s, s]`` over the whole sequence, true where attention is forbidden (it
    is added to the causal mask). Returns ``[s/cp, b, heads/tp * d]``.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: Any,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: Any = None,
        **_: Any,
    ) -> None:
        super().__init__()
        from megatron.core import parallel_state

        if config.softmax_type != "vanilla":
            raise ValueError(f"softmax_type {config.softmax_type!r} needs Megatron's own attention")
        self.scale = softmax_scale or 1.0 / math.sqrt(config.kv_channels)
        if config.apply_query_key_layer_scaling:
            self.scale /= max(1, layer_number)
        windowed = has_window(config, layer_number)
        self.window: tuple[int, int] | None = tuple(config.window_size) if windowed else None
        self.softcap: float | None = getattr(getattr(config, "moo", None), "attention_softcap", None)
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        self.tracked_dropout = not config.sequence_parallel
        cp_group = getattr(pg_collection, "cp", None) or parallel_state.get_context_parallel_group()
        self.cp_group = cp_group if cp_group.size() > 1 else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: Any = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        if packed_seq_params is not None or attention_bias is not None:
            raise ValueError("packed sequences come as a document mask, and attention bias is not supported")
        q_pos = k_pos = None
        if self.cp_group is not None:
            positions = zigzag_positions(
                query.shape[0] * self.cp_group.size(), self.cp_group.size(), query.device
            )
            q_pos, k_pos = positions[self.cp_group.rank()], positions.flatten()
            key, value = GatherSequence.apply(torch.stack([key, value], 1), self.cp_group).unbind(1)
        mask = self._allowed(query.shape[0], key.shape[0], q_pos, k_pos, attention_mask, query.device)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        p = self.dropout if self.training else 0.0
        if self.softcap is not None:
            return self._capped(q, k, v, mask, p).permute(2, 0, 1, 3).flatten(2)
        with self._random_state(p):
            out = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=p, is_causal=mask is None, scale=self.scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )  # fmt: skip
        return out.permute(2, 0, 1, 3).flatten(2)

    def _capped(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, p: float
    ) -> torch.Tensor:
        """Attention whose scores are c tanh(scores / c) (Gemma 2); ``[b, heads, s, d]``."""
        assert self.softcap is not None
        if mask is None:
            mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        repeats = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
        scores = torch.tanh(q @ k.mT * self.scale / self.softcap) * self.softcap
        weights = scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype)
        with self._random_state(p):
            weights = functional.dropout(weights, p)
        return weights @ v

    def _allowed(
        self,
        sq: int,
        sk: int,
        q_pos: torch.Tensor | None,
        k_pos: torch.Tensor | None,
        forbidden: torch.Tensor | None,
        device: torch.device,
    ) -> torch.Tensor | None:
        """Where a query may look, or None for the plain causal mask."""
        if q_pos is None and forbidden is None and self.window is None:
            return None
        q_pos = torch.arange(sq, device=device) if q_pos is None else q_pos
        k_pos = torch.arange(sk, device=device) if k_pos is None else k_pos
        distance = q_pos[:, None] - k_pos[None, :]
        allowed = distance >= 0
        if self.window is not None and self.window[0] >= 0:
            allowed = allowed & (distance <= self.window[0])
        if forbidden is None:
            return allowed
        return allowed & ~forbidden[:, :, q_pos][:, :, :, k_pos]

    def _random_state(self, p: float) -> contextlib.AbstractContextManager:
        if p and self.tracked_dropout:
            from megatron.core import tensor_parallel

            return tensor_parallel.get_cuda_rng_tracker().fork()
        return contextlib.nullcontext()
