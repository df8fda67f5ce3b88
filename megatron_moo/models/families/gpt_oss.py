"""GPT-OSS in 16 or 32 bit: attention sinks, biases, YaRN, and a clamped gate in turn with the up projection."""

from __future__ import annotations

from typing import Any

from megatron_moo.models.families import common
from megatron_moo.models.families.common import H, M
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.layouts import InterleavedRows, Transposed
from megatron_moo.models.families.model import Family, Model, Rule
from megatron_moo.models.families.moe import EXPERTS, expert_flags

_IN_ONE = H + "mlp.experts."


def read(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config)
    experts = config.integer("num_local_experts", 128, high=4096)
    dims |= {"experts": experts, "expert_ffn": dims["ffn"], "two_ffn": 2 * dims["ffn"]}
    flags, extras = common.base_flags(config, dims, eps_default=1e-5), common.base_extras(dims)
    tied = common.tie(config, flags)
    del flags["disable-bias-linear"]
    _yarn(config, flags, extras)
    config.fixed("hidden_act", "silu")
    config.fixed("attention_bias", True)
    config.fixed("swiglu_alpha", 1.702)
    # Two older names of the same number.
    config.unused("num_experts", "experts_per_token", "initial_context_length")
    flags |= {
        "add-qkv-bias": True,  # Megatron sets it itself where linear layers have biases
        "softmax-type": "learnable",
        "expert-tensor-parallel-size": 1,  # Megatron cuts no expert that has biases
        "quick-geglu": True,
        # Megatron-Core 0.19.2's fused form clamps before it adds the bias, and gives the bias a wrong gradient.
        "no-bias-gelu-fusion": True,
        "glu-linear-offset": 1.0,
        "activation-func-clamp-value": config.number("swiglu_limit", 7.0),
        **expert_flags(experts, config.integer("num_experts_per_tok", 4), dims["ffn"]),
    }
    default = ["sliding_attention" if (i + 1) % 2 else "full_attention" for i in range(config.layers())]
    kinds = config.pattern("layer_types", "sliding_attention", "full_attention", default)
    common.window_flags(
        flags, config.integer("sliding_window", 128), [kind == "sliding_attention" for kind in kinds]
    )
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(common.MOE_NORM),
        *common.attention_rules(qkv_bias=True, out_bias=True),
        Rule(M + "self_attention.core_attention.softmax_offset", (H + "self_attn.sinks",), (("heads",),)),
        *_expert_rules(),
    )
    return Model("gpt_oss", config.layers(), dims, flags, extras, rules)


def _expert_rules() -> list[Rule]:
    return [
        Rule(M + "mlp.router.weight", (H + "mlp.router.weight",), (("experts", "hidden"),)),
        Rule(M + "mlp.router.bias", (H + "mlp.router.bias",), (("experts",),)),
        Rule(
            EXPERTS + "linear_fc1.weight",
            (_IN_ONE + "gate_up_proj",),
            (("hidden", "two_ffn"),),
            InterleavedRows(transposed=True),
        ),
        Rule(
            EXPERTS + "linear_fc1.bias",
            (_IN_ONE + "gate_up_proj_bias",),
            (("two_ffn",),),
            InterleavedRows(transposed=False),
        ),
        Rule(
            EXPERTS + "linear_fc2.weight", (_IN_ONE + "down_proj",), (("expert_ffn", "hidden"),), Transposed()
        ),
        Rule(EXPERTS + "linear_fc2.bias", (_IN_ONE + "down_proj_bias",), (("hidden",),)),
    ]


def _yarn(config: Config, flags: dict[str, Any], extras: dict[str, Any]) -> None:
    default = {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    }  # fmt: skip
    new, old = common.rope_mappings(config)
    given = old or (default if new is None else new)
    base, scaling = common.rope_settings(
        given, config.number("rope_theta", 150000.0), config.where, ("yarn",)
    )
    common.put_rope(flags, extras, base, scaling)


FAMILY = Family("gpt_oss", ("GptOssForCausalLM",), read, "GPT-OSS (16 or 32 bit)")
