"""Gemma 2 and Gemma 3 (text): norms of (1 + w) before and after attention and MLP, windows, scaled embeddings."""

from __future__ import annotations

from typing import Any

from megatron_moo.models.families import common
from megatron_moo.models.families.common import H, M
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model, Rule


def _read(config: Config, name: str, every: int) -> Model:
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims), common.base_extras(dims)
    tied = common.tie(config, flags, default=True)
    config.fixed("hidden_activation", "gelu_pytorch_tanh")
    config.unused("hidden_act")  # older configs name it too, and transformers reads only hidden_activation
    config.fixed("attention_bias", False)
    config.fixed("use_bidirectional_attention", False)
    flags["apply-layernorm-1p"] = True
    pattern = config.integer("sliding_window_pattern", every)
    default = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(config.layers())]
    kinds = config.pattern("layer_types", "sliding_attention", "full_attention", default)
    common.window_flags(
        flags, config.integer("sliding_window", 4096), [kind == "sliding_attention" for kind in kinds]
    )
    extras |= {
        "embedding_multiplier": dims["hidden"] ** 0.5,
        "softmax_scale": config.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "post_norms": "also",
        "activation": "gelu_tanh",
    }
    _caps(config, extras, (50.0, 30.0) if name == "gemma2" else (None, None))
    rules = (
        *common.frame_rules(tied),
        Rule(common.INPUT_NORM, (H + "input_layernorm.weight",), (("hidden",),)),
        Rule(common.MLP_NORM, (H + "pre_feedforward_layernorm.weight",), (("hidden",),)),
        *post_norm_rules(),
        *common.attention_rules(qk_norm=name == "gemma3"),
        *common.gated_mlp_rules(),
    )
    return Model(name, config.layers(), dims, flags, extras, rules)


def post_norm_rules() -> list[Rule]:
    """The norms after attention and MLP."""
    return [
        Rule(
            M + "self_attention.linear_proj.post_norm.weight",
            (H + "post_attention_layernorm.weight",),
            (("hidden",),),
        ),
        Rule(
            M + "mlp.linear_fc2.post_norm.weight", (H + "post_feedforward_layernorm.weight",), (("hidden",),)
        ),
    ]


def _caps(config: Config, extras: dict[str, Any], defaults: tuple[float | None, float | None]) -> None:
    for key, name, default in (
        ("attn_logit_softcapping", "attention_softcap", defaults[0]),
        ("final_logit_softcapping", "logit_softcap", defaults[1]),
    ):
        if config.get(key, default) is not None:
            extras[name] = config.number(key, default)


def read_gemma2(config: Config) -> Model:
    """Hugging Face's config to the model."""
    model = _read(config, "gemma2", 2)
    common.rope(config, model.flags, model.extras)
    return model


def read_gemma3(config: Config) -> Model:
    """Hugging Face's config to the model; its full layers have a rope of their own."""
    model = _read(config, "gemma3", 6)
    model.flags["qk-layernorm"] = True
    common.two_ropes(config, model.flags, model.extras, full=1e6, local=1e4)
    return model


GEMMA2 = Family("gemma2", ("Gemma2ForCausalLM",), read_gemma2, "Gemma 2")
GEMMA3 = Family("gemma3", ("Gemma3ForCausalLM",), read_gemma3, "Gemma 3 (text)")
