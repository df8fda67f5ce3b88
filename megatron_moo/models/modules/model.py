"""Megatron's GPT with what its flags cannot say about embedding, rotary angles and logits."""

from __future__ import annotations

import copy
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from torch import Tensor

from megatron_moo.errors import MooError
from megatron_moo.models.families.extras import Extras
from megatron_moo.models.modules.attention import has_window
from megatron_moo.models.modules.rotary import TwoRotary, own_rotary


class Model(GPTModel):
    """A GPT with settings of :class:`Extras`, which ``config.moo`` holds.

    Args are those of ``GPTModel``.
    """

    rotary_pos_emb: Any

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        extras: Extras = self.config.moo
        self.extras = extras
        if hasattr(self, "rotary_pos_emb"):
            self._set_rotary(extras)
        if extras.embedding_multiplier != 1.0 and hasattr(self, "embedding"):
            self.embedding.register_forward_hook(self._scale_embedding)

    def _set_rotary(self, extras: Extras) -> None:
        size = self.config.kv_channels
        factors = {False: 1.0, True: 1.0}
        local = copy.copy(self.rotary_pos_emb) if extras.local_rope else None
        if extras.rope:
            factors[False] = own_rotary(self.rotary_pos_emb, extras.rope, size)
            if local is None:
                factors[True] = factors[False]
        if local is not None and extras.local_rope:
            factors[True] = own_rotary(local, extras.local_rope, size)
            self.rotary_pos_emb = TwoRotary(self.rotary_pos_emb, local)
        for layer in self.decoder.layers:
            attention = layer.self_attention
            # Megatron multiplies cosine and sine by this.
            attention._yarn_concentration_factor = factors[has_window(self.config, attention.layer_number)]

    def _scale_embedding(self, _module: Any, _args: Any, out: Tensor) -> Tensor:
        # The factor is rounded to the embedding's dtype first, as Gemma and Granite do.
        return out * torch.tensor(self.extras.embedding_multiplier, dtype=out.dtype, device=out.device)

    def _scale_logits(self, logits: Tensor) -> Tensor:
        """Scale, cap and, for rows of a padded vocabulary, forbid; ``[s, b, vocab / tp]``."""
        extras = self.extras
        logits = super()._scale_logits(logits)
        if extras.logit_multiplier != 1.0:
            logits = logits * extras.logit_multiplier
        if extras.logit_softcap is not None:
            logits = torch.tanh(logits / extras.logit_softcap) * extras.logit_softcap
        if extras.vocab is not None and extras.vocab < self.vocab_size:
            logits = self._forbid_padding(logits, extras.vocab)
        return logits

    def _forbid_padding(self, logits: Tensor, vocab: int) -> Tensor:
        width = logits.shape[-1]
        first = self.pg_collection.tp.rank() * width if width < self.vocab_size else 0
        rows = torch.arange(first, first + width, device=logits.device)
        return logits.masked_fill(rows >= vocab, torch.finfo(logits.dtype).min)


def prepare(config: Any, extras: Extras) -> None:
    """Write what a ``TransformerConfig`` can hold of the settings into it, and the settings as
    ``config.moo``.

    Raises:
        MooError: for settings that need modules of ours under Transformer Engine's spec.
    """
    if config.transformer_impl != "local" and needs_modules(extras):
        raise MooError(
            f"family {extras.family!r} needs modules that Transformer Engine's spec lacks",
            "--transformer-impl",
            "set it to local",
        )
    config.moo = extras
    if extras.softmax_scale is not None:
        config.softmax_scale = extras.softmax_scale
    if extras.activation == "gelu_tanh":
        config.activation_func = gelu_tanh
        config.gated_linear_unit = True
        config.bias_activation_fusion = False


def needs_modules(extras: Extras) -> bool:
    """Whether the settings change a layer's modules."""
    return (
        extras.residual_multiplier != 1.0
        or extras.attention_softcap is not None
        or extras.local_rope is not None
        or extras.post_norms is not None
        or extras.qk_norm is not None
        or extras.activation == "xielu"
        or extras.parallel
        or not extras.norm_bias
    )


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh formula."""
    return torch.nn.functional.gelu(x, approximate="tanh")
