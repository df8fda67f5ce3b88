"""Sizes that no model or batch can have, told before Megatron divides by them."""

from __future__ import annotations

from typing import Any

from megatron_moo.errors import MooError

# Each is a count: None where nobody said, else a whole number from 1.
_COUNTS = (
    "num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "num_query_groups", "kv_channels",
    "seq_length", "max_position_embeddings", "vocab_size", "padded_vocab_size", "make_vocab_size_divisible_by",
    "micro_batch_size", "global_batch_size", "train_iters", "num_experts", "moe_ffn_hidden_size", "moe_router_topk",
    "tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size",
    "expert_model_parallel_size", "expert_tensor_parallel_size", "num_distributed_optimizer_instances",
    "num_layers_per_virtual_pipeline_stage", "num_virtual_stages_per_pipeline_rank", "recompute_num_layers",
)  # fmt: skip
FULL_RECOMPUTE = "recompute-granularity: full, recompute-method: uniform, recompute-num-layers: 1"


def check_sizes(args: Any) -> None:
    """Refuse sizes that are not positive, by the name of the flag.

    Args:
        args: Megatron's parsed arguments, before its own validation.

    Raises:
        MooError: for the first of them.
    """
    for name in _COUNTS:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise MooError(
                f"is {value}, a whole number from 1 was expected",
                f"--{name.replace('_', '-')}",
                "give a positive one",
            )


def check_model(args: Any) -> None:
    """Refuse a model whose positive sizes do not divide, or whose recomputation is half told.

    Args:
        args: Megatron's parsed arguments, before its own validation; their layout fits the ranks.

    Raises:
        MooError: for the first of them, naming the flag.
    """
    heads, hidden, tp = args.num_attention_heads, args.hidden_size, args.tensor_model_parallel_size
    if heads is None:
        raise MooError("is not set", "num-attention-heads", "add it to the recipe")
    if args.kv_channels is None and hidden % heads:
        raise MooError(
            f"{heads} heads do not divide hidden-size {hidden}",
            "--num-attention-heads",
            "give a divisor of hidden-size, or set kv-channels",
        )
    if heads % tp:
        raise MooError(
            f"{heads} attention heads do not divide into {tp} tensor-parallel ranks",
            "--tensor-model-parallel-size",
            "give a divisor of num-attention-heads",
        )
    groups = args.num_query_groups
    if args.group_query_attention and heads % groups:
        raise MooError(
            f"{groups} query groups do not divide {heads} attention heads",
            "--num-query-groups",
            "give a divisor of num-attention-heads",
        )
    if args.group_query_attention and groups % tp and tp % groups:
        raise MooError(
            f"{groups} query groups are neither a multiple nor a divisor of {tp} tensor-parallel ranks",
            "--tensor-model-parallel-size",
            "give one that divides num-query-groups, or is a multiple of it",
        )
    if args.ffn_hidden_size is not None and args.ffn_hidden_size % tp:
        raise MooError(
            f"ffn-hidden-size {args.ffn_hidden_size} does not divide into {tp} tensor-parallel ranks",
            "--tensor-model-parallel-size",
            "give a divisor of ffn-hidden-size",
        )
    _check_recompute(args)


def _check_recompute(args: Any) -> None:
    """Megatron says these in the middle of building the model, on every rank."""
    if args.recompute_granularity != "full":
        return
    for name in ("recompute_method", "recompute_num_layers"):
        if getattr(args, name) is None:
            raise MooError(
                f"full recomputation needs {name.replace('_', '-')}, which is not set",
                "--recompute-granularity",
                f"set {FULL_RECOMPUTE}",
            )
