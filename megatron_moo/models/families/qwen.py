"""Qwen2 and Qwen2.5 (biases on q, k, v) and dense Qwen3 (a norm on every head of q and k)."""

from __future__ import annotations

from typing import Any

from megatron_moo.models.families import common
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model


def _read(config: Config, qwen3: bool) -> Model:
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims), common.base_extras(dims)
    tied = common.tie(config, flags)
    common.rope(config, flags, extras, scaled=("llama3", "linear", "yarn"))
    config.fixed("hidden_act", "silu")
    config.fixed("use_mrope", False)
    if qwen3:
        config.fixed("attention_bias", False)
        flags["qk-layernorm"] = True
    else:
        flags["add-qkv-bias"] = True
    windows(config, flags)
    flags["swiglu"] = True
    attention = common.attention_rules(qkv_bias=not qwen3, qk_norm=qwen3)
    rules = (*common.frame_rules(tied), *common.norm_rules(), *attention, *common.gated_mlp_rules())
    return Model("qwen3" if qwen3 else "qwen2", config.layers(), dims, flags, extras, rules)


def windows(config: Config, flags: dict[str, Any]) -> None:
    """Qwen's windows: off unless ``use_sliding_window``, then from layer ``max_window_layers`` on."""
    config.unused("sliding_window", "max_window_layers", "layer_types")
    if not config.flag("use_sliding_window"):
        config.fixed("layer_types", ["full_attention"] * config.layers())
        return
    first = config.integer("max_window_layers", 28, low=0)
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(config.layers())]
    kinds = config.pattern("layer_types", "sliding_attention", "full_attention", default)
    common.window_flags(
        flags, config.integer("sliding_window", 4096), [kind == "sliding_attention" for kind in kinds]
    )


def read_qwen2(config: Config) -> Model:
    """Hugging Face's config to the model."""
    return _read(config, qwen3=False)


def read_qwen3(config: Config) -> Model:
    """Hugging Face's config to the model."""
    return _read(config, qwen3=True)


QWEN2 = Family("qwen2", ("Qwen2ForCausalLM",), read_qwen2, "Qwen2, Qwen2.5")
QWEN3 = Family("qwen3", ("Qwen3ForCausalLM",), read_qwen3, "Qwen3 (dense)")
