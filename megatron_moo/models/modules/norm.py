"""RMSNorm and LayerNorm that Megatron can shard.

Megatron's ``WrappedTorchNorm`` refuses sequence parallelism. Under it a norm sees a slice of the sequence on
every tensor-parallel rank, so the gradient of its weight is a partial sum: the ``sequence_parallel`` mark
makes Megatron's finalize add it up over tensor-parallel ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from megatron_moo.kernels.norms import rms_norm


class Norm(torch.nn.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm, as ``config.normalization`` says.

    With ``config.layernorm_zero_centered_gamma`` the weight is stored as w and applied as 1 + w. A family's
    settings (``config.moo``) may take the LayerNorm's bias away.

    Args:
        config: Megatron's ``TransformerConfig``.
        hidden_size: size of the last dimension.
        eps: added to the mean square or variance.
    """

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        if config.normalization not in ("RMSNorm", "LayerNorm"):
            raise ValueError(f"normalization {config.normalization!r}, expected RMSNorm or LayerNorm")
        self.shape, self.eps = (hidden_size,), eps
        self.rms = config.normalization == "RMSNorm"
        self.zero_centered = bool(config.layernorm_zero_centered_gamma)
        start = torch.zeros if self.zero_centered else torch.ones
        self.weight = torch.nn.Parameter(start(hidden_size, dtype=config.params_dtype))
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010
        if self.rms or not getattr(getattr(config, "moo", None), "norm_bias", True):
            self.register_parameter("bias", None)
        else:
            self.bias = torch.nn.Parameter(torch.zeros(hidden_size, dtype=config.params_dtype))
            setattr(self.bias, "sequence_parallel", config.sequence_parallel)  # noqa: B010

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension of ``x``; same shape and dtype."""
        if self.rms and x.is_cuda:
            return rms_norm(x, self.weight, self.eps, self.zero_centered)
        weight = self.weight + 1 if self.zero_centered else self.weight
        if self.rms:
            return functional.rms_norm(x, self.shape, weight, self.eps)
        return functional.layer_norm(x, self.shape, weight, self.bias, self.eps)


def local_norm(config: Any) -> type[torch.nn.Module]:
    """Norm of the local spec: Apex's fused LayerNorm (in Megatron's module) where it is installed, else :class:`Norm`.

    Apex's has no RMSNorm that Megatron uses, no LayerNorm without a bias, and no CPU (which initialises there).
    """
    from megatron.core.fusions.fused_layer_norm import HAVE_FUSED_LAYER_NORM, FusedLayerNorm

    bias = getattr(getattr(config, "moo", None), "norm_bias", True)
    if (
        HAVE_FUSED_LAYER_NORM
        and config.normalization == "LayerNorm"
        and bias
        and not config.use_cpu_initialization
    ):
        return FusedLayerNorm
    return Norm
