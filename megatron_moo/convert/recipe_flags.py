"""Megatron's flags of a converted model: written beside the checkpoint, kept in it, and read back."""

from __future__ import annotations

import argparse
from typing import Any

import yaml

from megatron_moo.models.families.extras import to_spec
from megatron_moo.models.families.model import Model

# Flag to attribute and value, where Megatron's parser does more than replace dashes.
_ATTRIBUTES: dict[str, tuple[str, Any]] = {
    "disable-bias-linear": ("add_bias_linear", False),
    "no-bias-gelu-fusion": ("bias_gelu_fusion", False),
    "apply-layernorm-1p": ("layernorm_zero_centered_gamma", True),
}
_NAMES = {"norm-epsilon": "layernorm_epsilon"}


def all_flags(model: Model) -> dict[str, Any]:
    """Every flag of a model, the spec with the settings of ours included."""
    spec = to_spec(model.family, model.extras)
    return {**model.flags, **({"spec": spec} if spec else {})}


def to_yaml(model: Model) -> str:
    """The flags as a piece of a recipe."""
    head = (
        f"# Flags of this {model.family} model for Megatron and for a recipe of megatron-moo.\n"
        "# Train from it with `pretrained-checkpoint: FOLDER OF THIS FILE` in the recipe.\n"
    )
    return head + yaml.safe_dump(all_flags(model), sort_keys=False, default_flow_style=False)


def to_attributes(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags as attributes of Megatron's arguments."""
    found: dict[str, Any] = {}
    for flag, value in flags.items():
        if flag in _ATTRIBUTES:
            name, held = _ATTRIBUTES[flag]
            found[name] = held
        elif flag == "window-size":
            found["window_size"] = tuple(int(item) for item in value.split(","))
        elif flag in ("window-attn-skip-freq", "no-rope-freq"):
            found[flag.replace("-", "_")] = [int(item) for item in value.strip("[]").split(",")]
        else:
            found[_NAMES.get(flag, flag.replace("-", "_"))] = value
    return found


def to_arguments(model: Model, dtype: str) -> argparse.Namespace:
    """What ``--use-checkpoint-args`` reads: the model's part of Megatron's arguments."""
    values: dict[str, Any] = {
        "untie_embeddings_and_output_weights": False,
        "add_position_embedding": True,
        "add_qkv_bias": False,
        "swiglu": False,
        "squared_relu": False,
        "qk_layernorm": False,
        "rotary_percent": 1.0,
        "rotary_interleaved": False,
        "use_rotary_position_embeddings": False,
        "layernorm_zero_centered_gamma": False,
        "apply_query_key_layer_scaling": False,
        "num_experts": None,
        "window_size": None,
        "window_attn_skip_freq": None,
        "no_rope_freq": None,
        "spec": None,
        "vocab_size": model.dims["vocab"],
        "seq_length": model.flags["max-position-embeddings"],
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "expert_model_parallel_size": 1,
        "world_size": 1,
        "data_parallel_size": 1,
        "no_save_optim": True,
        "no_save_rng": True,
        "ckpt_format": "torch_dist",
        "consumed_train_samples": 0,
        "skipped_train_samples": 0,
        "consumed_valid_samples": 0,
        "params_dtype": dtype,
    }
    return argparse.Namespace(**{**values, **to_attributes(all_flags(model))})


def differences(model: Model, args: Any) -> list[str]:
    """What a checkpoint's arguments say otherwise than the model: the attribute and both values."""
    told = []
    for name, value in to_attributes(all_flags(model)).items():
        if name in (
            "padded_vocab_size",
            "max_position_embeddings",
            "attention_dropout",
            "hidden_dropout",
            "spec",
        ):
            continue
        found = _held(args, name)
        if _plain(found) != _plain(value):
            told.append(f"{name} is {found!r} in the checkpoint and {value!r} in the config")
    if model.flags.get("untie-embeddings-and-output-weights", False) != bool(
        getattr(args, "untie_embeddings_and_output_weights", False)
    ):
        told.append("embedding and output layer are tied in one and not in the other")
    for name in ("add_qkv_bias", "qk_layernorm", "window_size", "num_experts", "no_rope_freq"):
        if name not in to_attributes(all_flags(model)) and getattr(args, name, None) not in (None, False):
            told.append(f"{name} is {getattr(args, name)!r} in the checkpoint and not in the config")
    return told


def _held(args: Any, name: str) -> Any:
    """An argument as our flags put it: attention without groups is one group a head, of the heads' own width."""
    found = getattr(args, name, None)
    if name == "group_query_attention":
        return True
    if name == "num_query_groups" and not getattr(args, "group_query_attention", False):
        return args.num_attention_heads
    if name == "kv_channels" and found is None:
        return args.hidden_size // args.num_attention_heads
    return found


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value
