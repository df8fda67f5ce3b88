"""Self-attention that takes its layer's half of two rotary embeddings."""

from __future__ import annotations

from typing import Any

from megatron.core.transformer.attention import SelfAttention as StockSelfAttention

from megatron_moo.models.modules.attention import has_window


class SelfAttention(StockSelfAttention):
    """Megatron's, with angles ``[s, 1, 1, 2 x head]``: full layers take the first half, windowed ones the second."""

    def forward(self, *args: Any, rotary_pos_emb: Any = None, **kw: Any) -> Any:
        if rotary_pos_emb is not None:
            halves = rotary_pos_emb.chunk(2, -1)
            rotary_pos_emb = halves[1 if has_window(self.config, self.layer_number) else 0]
        return super().forward(*args, rotary_pos_emb=rotary_pos_emb, **kw)
