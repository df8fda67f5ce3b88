"""Llama 2, 3, 3.1, 3.2; SmolLM2 and EuroLLM are the same class."""

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
    config.fixed("rope_interleaved", False)
    flags["swiglu"] = True
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(),
        *common.attention_rules(),
        *common.gated_mlp_rules(),
    )
    return Model("llama", config.layers(), dims, flags, extras, rules)


FAMILY = Family("llama", ("LlamaForCausalLM",), read, "Llama 2/3/3.1/3.2, SmolLM2, EuroLLM")
