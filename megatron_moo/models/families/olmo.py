"""OLMo 2 and 3: norms only after attention and MLP, one norm over all heads of q and of k."""

from __future__ import annotations

from megatron_moo.models.families import common
from megatron_moo.models.families.common import H, M
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.gemma import post_norm_rules
from megatron_moo.models.families.model import Family, Model, Rule


def _read(config: Config, name: str) -> Model:
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims, eps_default=1e-5), common.base_extras(dims)
    tied = common.tie(config, flags)
    config.fixed("hidden_act", "silu")
    config.fixed("attention_bias", False)
    flags["swiglu"] = True
    extras |= {"post_norms": "only", "qk_norm": "wide"}
    wide = [
        Rule(f"{M}self_attention.{part}_layernorm.weight", (f"{H}self_attn.{part}_norm.weight",), ((size,),))
        for part, size in (("q", "q"), ("k", "kv"))
    ]
    rules = (
        *common.frame_rules(tied),
        *post_norm_rules(),
        *common.attention_rules(),
        *wide,
        *common.gated_mlp_rules(),
    )
    return Model(name, config.layers(), dims, flags, extras, rules)


def read_olmo2(config: Config) -> Model:
    """Hugging Face's config to the model."""
    model = _read(config, "olmo2")
    common.rope(config, model.flags, model.extras)
    return model


def read_olmo3(config: Config) -> Model:
    """Hugging Face's config to the model: three windowed layers to a full one, scaled rope on the full ones only."""
    model = _read(config, "olmo3")
    default = ["sliding_attention" if (i + 1) % 4 else "full_attention" for i in range(config.layers())]
    kinds = config.pattern("layer_types", "sliding_attention", "full_attention", default)
    sliding = [kind == "sliding_attention" for kind in kinds]
    common.window_flags(model.flags, config.integer("sliding_window", 4096), sliding)
    common.two_ropes(config, model.flags, model.extras, full=5e5, local=5e5)
    return model


OLMO2 = Family("olmo2", ("Olmo2ForCausalLM",), read_olmo2, "OLMo 2")
OLMO3 = Family("olmo3", ("Olmo3ForCausalLM",), read_olmo3, "OLMo 3")
