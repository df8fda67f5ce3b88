"""Apertus: an MLP without gate whose activation, xIELU, has two learnt scalars in every layer."""

from __future__ import annotations

from megatron_moo.models.families import common
from megatron_moo.models.families.common import H, M
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model, Rule


def read(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config) | {"one": 1}
    flags, extras = common.base_flags(config, dims, eps_default=1e-5), common.base_extras(dims)
    tied = common.tie(config, flags)
    if config.get("rope_parameters") is None and config.get("rope_scaling") is None:
        # transformers' default for this family.
        common.put_rope(
            flags, extras, config.number("rope_theta", 12e6),
            {"type": "llama3", "factor": 8.0, "low": 1.0, "high": 4.0, "original": 8192.0},
        )  # fmt: skip
    else:
        common.rope(config, flags, extras, theta=12e6)
    config.fixed("hidden_act", "xielu")
    config.fixed("attention_bias", False)
    config.fixed("mlp_bias", False)
    config.fixed("qk_norm", True)
    config.fixed("post_norm", False)
    flags["qk-layernorm"] = True
    extras["activation"] = "xielu"
    mlp, act = M + "mlp.", H + "mlp.act_fn."
    rules = (
        *common.frame_rules(tied),
        Rule(common.INPUT_NORM, (H + "attention_layernorm.weight",), (("hidden",),)),
        Rule(common.MLP_NORM, (H + "feedforward_layernorm.weight",), (("hidden",),)),
        *common.attention_rules(qk_norm=True),
        Rule(mlp + "linear_fc1.weight", (H + "mlp.up_proj.weight",), (("ffn", "hidden"),)),
        Rule(mlp + "linear_fc2.weight", (H + "mlp.down_proj.weight",), (("hidden", "ffn"),)),
        *(
            Rule(f"{mlp}activation_func.{name}", (act + name,), (("one",),))
            for name in ("alpha_p", "alpha_n")
        ),
    )
    constants = {act + "beta": 0.5, act + "eps": -1e-6}
    return Model("apertus", config.layers(), dims, flags, extras, rules, constants)


FAMILY = Family("apertus", ("ApertusForCausalLM",), read, "Apertus")
