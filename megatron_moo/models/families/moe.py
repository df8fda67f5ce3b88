"""Qwen3-MoE and Mixtral: the best experts' weights normalised among themselves."""

from __future__ import annotations

from typing import Any

from megatron_moo.models.families import common
from megatron_moo.models.families.common import H, M
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.layouts import GATE_UP
from megatron_moo.models.families.model import Family, Model, Rule
from megatron_moo.models.families.qwen import windows

EXPERTS = M + "mlp.experts.experts."


def expert_flags(experts: int, best: int, ffn: int) -> dict[str, Any]:
    """Megatron's flags of a layer of experts; a recipe may choose another balancing and dispatcher."""
    return {
        "num-experts": experts,
        "moe-router-topk": best,
        "moe-ffn-hidden-size": ffn,
        "moe-router-load-balancing-type": "none",
        "moe-token-dispatcher-type": "alltoall",
    }


def expert_rules(router: str, expert: str, gate: str, up: str, down: str) -> list[Rule]:
    """Router and experts, one tensor for each."""
    return [
        Rule(M + "mlp.router.weight", (H + router,), (("experts", "hidden"),)),
        Rule(
            EXPERTS + "linear_fc1.weight",
            (f"{H}{expert}.{gate}.weight", f"{H}{expert}.{up}.weight"),
            (("expert_ffn", "hidden"),) * 2,
            GATE_UP,
        ),
        Rule(EXPERTS + "linear_fc2.weight", (f"{H}{expert}.{down}.weight",), (("hidden", "expert_ffn"),)),
    ]


def read_qwen3_moe(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config)
    dims |= {
        "experts": _experts(config, "num_experts", 128),
        "expert_ffn": config.integer("moe_intermediate_size", 768),
    }
    flags, extras = common.base_flags(config, dims), common.base_extras(dims)
    tied = common.tie(config, flags)
    common.rope(config, flags, extras, scaled=("llama3", "linear", "yarn"))
    config.fixed("hidden_act", "silu")
    config.fixed("attention_bias", False)
    config.fixed("decoder_sparse_step", 1)
    config.fixed("mlp_only_layers", [])
    windows(config, flags)
    flags |= {"qk-layernorm": True, "swiglu": True}
    flags |= expert_flags(dims["experts"], config.integer("num_experts_per_tok", 8), dims["expert_ffn"])
    if not config.flag("norm_topk_prob"):
        flags["moe-router-pre-softmax"] = True
    names = ("mlp.gate.weight", "mlp.experts.{expert}", "gate_proj", "up_proj", "down_proj")
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(common.MOE_NORM),
        *common.attention_rules(qk_norm=True),
        *expert_rules(*names),
    )
    return Model("qwen3_moe", config.layers(), dims, flags, extras, rules)


def read_mixtral(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config)
    dims |= {"experts": _experts(config, "num_local_experts", 8), "expert_ffn": dims["ffn"]}
    flags, extras = common.base_flags(config, dims, eps_default=1e-5), common.base_extras(dims)
    tied = common.tie(config, flags)
    common.rope(config, flags, extras, theta=1e6, scaled=("llama3", "linear", "yarn"))
    config.fixed("hidden_act", "silu")
    config.unused("router_jitter_noise")  # while training in transformers only
    if config.get("sliding_window") is not None:
        common.window_flags(flags, config.integer("sliding_window"))
    flags["swiglu"] = True
    flags |= expert_flags(dims["experts"], config.integer("num_experts_per_tok", 2), dims["expert_ffn"])
    names = ("block_sparse_moe.gate.weight", "block_sparse_moe.experts.{expert}", "w1", "w3", "w2")
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(common.MOE_NORM),
        *common.attention_rules(),
        *expert_rules(*names),
    )
    return Model("mixtral", config.layers(), dims, flags, extras, rules)


def _experts(config: Config, key: str, default: int) -> int:
    other = "num_local_experts" if key == "num_experts" else "num_experts"
    key = other if config.get(key) is None and config.get(other) is not None else key
    config.unused(other)
    return config.integer(key, default, high=4096)


QWEN3_MOE = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), read_qwen3_moe, "Qwen3 (experts)")
MIXTRAL = Family("mixtral", ("MixtralForCausalLM",), read_mixtral, "Mixtral")
