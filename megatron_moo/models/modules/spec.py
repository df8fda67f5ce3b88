"""Which modules of ours a family's settings put into the local spec."""

from __future__ import annotations

import functools
from typing import Any

from megatron_moo.models.families.extras import Extras


def with_extras(spec: Any, config: Any) -> None:
    """Replace modules of a decoder block's local spec as ``config.moo`` asks."""
    from megatron.core.transformer.identity_op import IdentityOp

    extras: Extras = config.moo
    for layer in spec.layer_specs:
        parts = layer.submodules
        if extras.local_rope is not None or extras.qk_norm is not None:
            from megatron_moo.models.modules.self_attention import SelfAttention

            parts.self_attention.module = SelfAttention
        if extras.post_norms is not None or extras.residual_multiplier != 1.0:
            from megatron_moo.models.modules.linear import RowParallel

            parts.self_attention.submodules.linear_proj = RowParallel
            _mlp_parts(parts.mlp).linear_fc2 = RowParallel
        if extras.post_norms == "only":
            parts.input_layernorm = parts.pre_mlp_layernorm = IdentityOp
        if extras.activation == "xielu":
            from megatron_moo.models.modules.xielu import XieluMLP

            parts.mlp = functools.partial(XieluMLP.as_mlp_submodule, submodules=_mlp_parts(parts.mlp))
        if extras.parallel:
            from megatron_moo.models.modules.parallel_layer import ParallelLayer

            layer.module = ParallelLayer
            parts.pre_mlp_layernorm = IdentityOp


def biased_experts(mlp: Any) -> None:
    """Give experts with biases a second linear layer that sequence parallelism leaves alone."""
    from megatron_moo.models.modules.linear import BiasedExpertRowParallel

    experts = getattr(_mlp_parts(mlp), "experts", None)
    if experts is not None:
        _mlp_parts(experts).linear_fc2 = BiasedExpertRowParallel


def _mlp_parts(mlp: Any) -> Any:
    """Submodules of an MLP's spec, a ``ModuleSpec`` or a partial call."""
    return mlp.keywords["submodules"] if isinstance(mlp, functools.partial) else mlp.submodules
