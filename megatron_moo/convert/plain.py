"""A Hugging Face config for a checkpoint that was trained from scratch, where plain Megatron flags allow it."""

from __future__ import annotations

from typing import Any

from megatron_moo.convert.recipe_flags import differences
from megatron_moo.errors import MooError
from megatron_moo.models.families import families
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Model

_ACTIVE = ("num_experts", "window_size", "no_rope_freq", "multi_latent_attention", "layernorm_zero_centered_gamma",
           "use_mup", "attention_output_gate", "qk_l2_norm", "rotary_interleaved", "squared_relu", "quick_geglu",
           "rotary_seq_len_interpolation_factor", "spec", "mtp_num_layers",
           "apply_residual_connection_post_layernorm")  # fmt: skip


def plain_model(args: Any, rows: int, where: str) -> tuple[Model, dict[str, Any]]:
    """Model and config of a checkpoint by its arguments alone: a Llama, Qwen2 or Qwen3.

    Args:
        args: arguments of the run.
        rows: rows of the embedding.
        where: the checkpoint, for messages.

    Raises:
        MooError: for a model that transformers has no such class for.
    """
    _check_plain(args, where)
    qwen3, qwen2 = bool(getattr(args, "qk_layernorm", False)), bool(getattr(args, "add_qkv_bias", False))
    if qwen2 and qwen3:
        raise MooError("has biases on q, k, v and norms on q and k: no family has both", where)
    name = "qwen3" if qwen3 else "qwen2" if qwen2 else "llama"
    family = next(item for item in families() if item.name == name)
    heads = args.num_attention_heads
    template: dict[str, Any] = {
        "architectures": list(family.architectures),
        "model_type": name,
        "vocab_size": _vocabulary(args, rows),
        "hidden_size": args.hidden_size,
        "intermediate_size": args.ffn_hidden_size,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": heads,
        "num_key_value_heads": args.num_query_groups
        if getattr(args, "group_query_attention", False)
        else heads,
        "head_dim": getattr(args, "kv_channels", None) or args.hidden_size // heads,
        "hidden_act": "silu",
        "max_position_embeddings": args.max_position_embeddings,
        "rms_norm_eps": args.layernorm_epsilon,
        "rope_theta": float(args.rotary_base),
        "tie_word_embeddings": not args.untie_embeddings_and_output_weights,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if getattr(args, "use_rope_scaling", False):
        template["rope_scaling"] = {
            "rope_type": "llama3", "factor": args.rope_scaling_factor, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
    template = {key: value for key, value in template.items() if value is not None or key.endswith("_id")}
    model = family.read(Config(template, where))
    if told := differences(model, args):
        raise MooError(f"is no {name}: {told[0]}", where)
    return model, template


def _check_plain(args: Any, where: str) -> None:
    wanted = {
        "normalization": "RMSNorm", "swiglu": True, "add_bias_linear": False, "rotary_percent": 1.0,
        "softmax_type": "vanilla",
    }  # fmt: skip
    for name, value in wanted.items():
        if getattr(args, name, value) != value:
            raise MooError(f"{name} is {getattr(args, name)!r}, which no family of transformers has", where)
    if getattr(args, "position_embedding_type", "rope") != "rope":
        raise MooError(f"position_embedding_type is {args.position_embedding_type!r}, expected rope", where)
    for name in _ACTIVE:
        value = getattr(args, name, None)
        if value not in (None, False, [], "None"):
            raise MooError(
                f"{name} is {value!r}", where, "give a Hugging Face folder of the same model with --like"
            )


def _vocabulary(args: Any, rows: int) -> int:
    """Rows that stand for tokens; the rest is Megatron's padding."""
    vocab = getattr(args, "vocab_size", None)
    return vocab if isinstance(vocab, int) and 0 < vocab <= rows else rows
