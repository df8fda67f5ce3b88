"""Self-attention with what some families do to angles, queries and keys."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.attention import SelfAttention as StockSelfAttention

from megatron_moo.models.modules.attention import has_window
from megatron_moo.models.modules.wide_norm import WideNorm


class SelfAttention(StockSelfAttention):
    """Megatron's, as ``config.moo`` asks.

    With ``local_rope`` the angles are ``[s, 1, 1, 2 x head]``: full layers take the first half, windowed ones
    the second. With ``qk_norm`` wide, all heads of q are normalised together, and all of k.
    """

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        if self.config.moo.qk_norm == "wide":
            # Set after Megatron's constructor: its own flag would sum these weights' gradients over ranks.
            self.q_layernorm = WideNorm(self.config, self.config.num_attention_heads, self.tp_group)
            self.k_layernorm = WideNorm(self.config, self.config.num_query_groups, self.tp_group)

    def forward(self, *args: Any, rotary_pos_emb: Any = None, **kw: Any) -> Any:
        if rotary_pos_emb is not None and self.config.moo.local_rope is not None:
            halves = rotary_pos_emb.chunk(2, -1)
            rotary_pos_emb = halves[1 if has_window(self.config, self.layer_number) else 0]
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb, **kw)
