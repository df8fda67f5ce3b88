"""SmolLM3: a Llama that leaves out the rotation in every fourth layer."""

from __future__ import annotations

from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.models.families import common
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Family, Model


def read(config: Config) -> Model:
    """Hugging Face's config to the model."""
    dims = common.sizes(config)
    flags, extras = common.base_flags(config, dims), common.base_extras(dims)
    tied = common.tie(config, flags, default=True)
    common.rope(config, flags, extras, theta=2e6, scaled=("llama3", "linear", "yarn"))
    config.fixed("hidden_act", "silu")
    config.fixed("mlp_bias", False)
    config.fixed("attention_bias", False)
    config.fixed("use_sliding_window", False)
    config.unused("sliding_window", "max_window_layers", "layer_types")
    config.fixed("layer_types", ["full_attention"] * config.layers())
    _rotation(config, flags)
    flags["swiglu"] = True
    rules = (
        *common.frame_rules(tied),
        *common.norm_rules(),
        *common.attention_rules(),
        *common.gated_mlp_rules(),
    )
    return Model("smollm3", config.layers(), dims, flags, extras, rules)


def _rotation(config: Config, flags: dict[str, Any]) -> None:
    every = config.integer("no_rope_layer_interval", 4)
    rotated = config.get("no_rope_layers")
    if rotated is None:
        rotated = [int((i + 1) % every != 0) for i in range(config.layers())]
    if not isinstance(rotated, list) or len(rotated) < config.layers() or not set(rotated) <= {0, 1}:
        raise MooError(f"no_rope_layers is not a list of {config.layers()} times 0 or 1", config.where)
    rotated = rotated[: config.layers()]
    if not all(rotated):
        # Hugging Face's 1 is a rotated layer, Megatron's 1 is one without.
        flags["no-rope-freq"] = "[" + ",".join(str(1 - item) for item in rotated) + "]"


FAMILY = Family("smollm3", ("SmolLM3ForCausalLM",), read, "SmolLM3")
