"""A layer whose attention and MLP read the same norm (Cohere): x + attention(norm(x)) + mlp(norm(x))."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.transformer_layer import TransformerLayer
from megatron.core.utils import make_viewless_tensor
from torch import Tensor
from torch.nn import functional


class ParallelLayer(TransformerLayer):
    """Megatron's layer with attention and MLP side by side."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        rotary_pos_emb: Any = None,
        **_: Any,
    ) -> tuple[Tensor, None]:
        """``[s, b, h]`` to the same."""
        normed = self.input_layernorm(hidden_states)
        attended, _bias = self.self_attention(normed, attention_mask, rotary_pos_emb=rotary_pos_emb)
        mixed, _bias = self.mlp(normed)
        added = functional.dropout(attended + mixed, self.hidden_dropout, self.training)
        out = hidden_states + added
        return make_viewless_tensor(inp=out, requires_grad=out.requires_grad, keep_graph=True), None
