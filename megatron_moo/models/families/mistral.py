"""Mistral 7B, Nemo, Small: a Llama with its own head size and, in the first release, a window on every layer."""

from __future__ import annotations

from megatron_moo.models.families import common
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model


def read(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims), common.base_extras(dims)
    tied = common.tie(config, flags)
    common.rope(config, flags, extras, scaled=("llama3", "linear", "yarn"))
    config.fixed("hidden_act", "silu")
    # A missing key is transformers' default, null is no window.
    if config.get("sliding_window", 4096) is not None:
        common.window_flags(flags, config.integer("sliding_window", 4096))
    flags["swiglu"] = True
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(),
        *common.attention_rules(),
        *common.gated_mlp_rules(),
    )
    return Model("mistral", config.layers(), dims, flags, extras, rules)


FAMILY = Family("mistral", ("MistralForCausalLM",), read, "Mistral 7B, Nemo, Small (text)")
