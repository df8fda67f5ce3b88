"""Cohere (Command R, Aya) and Cohere 2 (Command R7B): attention and MLP side by side, LayerNorm without bias."""

from __future__ import annotations

from megatron_moo.models.families import common
from megatron_moo.models.families.common import H
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model, Rule


def _read(config: Config, name: str) -> Model:
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims, "layer_norm_eps", 1e-5), common.base_extras(dims)
    tied = common.tie(config, flags, default=True)
    common.rope(config, flags, extras, theta=5e5 if name == "cohere" else 1e4)
    config.fixed("hidden_act", "silu")
    config.fixed("attention_bias", False)
    config.fixed("use_qk_norm", False)
    flags |= {"normalization": "LayerNorm", "rotary-interleaved": True, "swiglu": True}
    extras |= {"parallel": True, "norm_bias": False, "logit_multiplier": config.number("logit_scale", 0.0625)}
    rules = (
        *common.frame_rules(tied),
        Rule(common.INPUT_NORM, (H + "input_layernorm.weight",), (("hidden",),)),
        *common.attention_rules(),
        *common.gated_mlp_rules(),
    )
    return Model(name, config.layers(), dims, flags, extras, rules)


def read_cohere(config: Config) -> Model:
    """Hugging Face's config to the model."""
    return _read(config, "cohere")


def read_cohere2(config: Config) -> Model:
    """Hugging Face's config to the model: windowed layers are rotated, full ones are not."""
    model = _read(config, "cohere2")
    config.unused(
        "order_of_interleaved_layers", "position_embedding_type", "rotary_pct", "use_embedding_sharing"
    )
    config.fixed("rotary_pct", 1.0)
    config.fixed("use_gated_activation", True)
    config.fixed("use_parallel_block", True)
    config.fixed("use_parallel_embedding", False)
    pattern = config.integer("sliding_window_pattern", 4)
    default = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(config.layers())]
    kinds = config.pattern("layer_types", "sliding_attention", "full_attention", default)
    sliding = [kind == "sliding_attention" for kind in kinds]
    common.window_flags(model.flags, config.integer("sliding_window", 4096), sliding)
    model.flags["no-rope-freq"] = "[" + ",".join(str(int(not item)) for item in sliding) + "]"
    return model


COHERE = Family("cohere", ("CohereForCausalLM",), read_cohere, "Cohere: Command R, Aya Expanse, Aya 23")
COHERE2 = Family("cohere2", ("Cohere2ForCausalLM",), read_cohere2, "Cohere 2: Command R7B, Tiny Aya")
