"""Granite 3 (dense): a Llama with four multipliers, applied where the model applies them, not folded into weights."""

from __future__ import annotations

from megatron_moo.models.families import common
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model


def read(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims), common.base_extras(dims)
    tied = common.tie(config, flags)
    common.rope(config, flags, extras)
    config.fixed("hidden_act", "silu")
    config.fixed("mlp_bias", False)
    config.fixed("attention_bias", False)
    flags["swiglu"] = True
    extras |= {
        "embedding_multiplier": config.number("embedding_multiplier", 1.0),
        "residual_multiplier": config.number("residual_multiplier", 1.0),
        "softmax_scale": config.number("attention_multiplier", 1.0),
        "logit_multiplier": 1.0 / config.number("logits_scaling", 1.0),
    }
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(),
        *common.attention_rules(),
        *common.gated_mlp_rules(),
    )
    return Model("granite", config.layers(), dims, flags, extras, rules)


FAMILY = Family("granite", ("GraniteForCausalLM",), read, "Granite 3 (dense)")
