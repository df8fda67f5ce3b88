"""The one function that builds the model.

Megatron-Core 0.19.2 calls ``GPTModel`` deprecated and its successor needs Transformer Engine, so every construction
stands here. Two branches: Megatron's own spec with Transformer Engine, and the local spec with the modules of ours
that it lacks (norms under sequence parallelism, attention under context parallelism and with document masks).
"""

from __future__ import annotations

from typing import Any

from megatron_moo.models.lora import select_trainable


def build_model(
    args: Any,
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
) -> Any:
    """Build this rank's part of the GPT that Megatron's arguments describe.

    Args:
        args: Megatron's parsed arguments.
        pre_process, post_process: whether this stage holds the embedding and the output layer.
        vp_stage: virtual pipeline stage, or None.
        config: a ``TransformerConfig``; read from ``args`` when None.
        pg_collection: process groups, or None for Megatron's global ones.

    Adapters are added and parameters frozen as the flags say (``megatron_moo/models/lora.py``).
    """
    from megatron.core.models.gpt import GPTModel
    from megatron.training.argument_utils import core_transformer_config_from_args

    from megatron_moo.models.families.extras import from_spec

    config = config or core_transformer_config_from_args(args)
    extras = from_spec(getattr(args, "spec", None))
    model_class = GPTModel
    if extras is not None:
        from megatron_moo.models.modules.model import Model, prepare

        prepare(config, extras)
        model_class = Model
    model = model_class(
        config=config,
        transformer_layer_spec=layer_spec(config, vp_stage),
        vocab_size=args.padded_vocab_size,
        max_sequence_length=args.max_position_embeddings,
        pre_process=pre_process,
        post_process=post_process,
        fp16_lm_cross_entropy=args.fp16_lm_cross_entropy,
        parallel_output=True,
        share_embeddings_and_output_weights=not args.untie_embeddings_and_output_weights,
        position_embedding_type=args.position_embedding_type,
        rotary_percent=args.rotary_percent,
        rotary_base=args.rotary_base,
        rope_scaling=args.use_rope_scaling,
        rope_scaling_factor=args.rope_scaling_factor,
        vp_stage=vp_stage,
        pg_collection=pg_collection,
    )
    _mark_sinks(model)
    return select_trainable(model, args)


def _mark_sinks(model: Any) -> None:
    """Say that attention sinks are cut by heads: Megatron-Core 0.19.2 does not, and its gradient norm misses them."""
    for name, param in model.named_parameters():
        if name.endswith("core_attention.softmax_offset"):
            param.tensor_model_parallel, param.partition_dim, param.partition_stride = True, 0, 1


def layer_spec(config: Any, vp_stage: int | None = None) -> Any:
    """Spec of the decoder block (``TransformerBlockSubmodules``) for ``config.transformer_impl``."""
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

    use_te = config.transformer_impl == "transformer_engine"
    spec = get_gpt_decoder_block_spec(
        config, use_transformer_engine=use_te, normalization=config.normalization, vp_stage=vp_stage
    )
    if use_te:
        return spec
    spec = _with_our_modules(spec, config)
    if getattr(config, "moo", None) is not None:
        from megatron_moo.models.modules.spec import with_extras

        with_extras(spec, config)
    return spec


def _with_our_modules(spec: Any, config: Any) -> Any:
    """Put our norm (or Apex's) and our attention where Megatron's local spec has torch's norm and its own attention."""
    from megatron_moo.models.modules.attention import CoreAttention
    from megatron_moo.models.modules.norm import local_norm

    norm = local_norm(config)
    for layer in spec.layer_specs:
        parts = layer.submodules
        parts.input_layernorm = parts.pre_mlp_layernorm = norm
        attention = parts.self_attention.submodules
        if config.softmax_type == "vanilla":
            attention.core_attention = CoreAttention
        if config.qk_layernorm:
            attention.q_layernorm = attention.k_layernorm = norm
        if config.num_moe_experts and config.add_bias_linear:
            from megatron_moo.models.modules.spec import biased_experts

            biased_experts(parts.mlp)
    spec.layer_norm = norm
    return spec
