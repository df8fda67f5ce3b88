"""Which modules of ours a family's settings put into the local spec."""

from __future__ import annotations

from typing import Any

from megatron_moo.models.families.extras import Extras


def with_extras(spec: Any, config: Any) -> None:
    """Replace modules of a decoder block's local spec as ``config.moo`` asks."""
    extras: Extras = config.moo
    for layer in spec.layer_specs:
        parts = layer.submodules
        if extras.local_rope is not None:
            from megatron_moo.models.modules.self_attention import SelfAttention

            parts.self_attention.module = SelfAttention
