"""The linear layer that ends attention and MLP, with what some families do to its output."""

from __future__ import annotations

from typing import Any

from megatron.core.tensor_parallel import RowParallelLinear
from torch import Tensor

from megatron_moo.models.modules.norm import Norm


class RowParallel(RowParallelLinear):
    """Row-parallel linear, then a norm (Gemma 2 and 3, OLMo 2 and 3) and a factor (Granite), as
    ``config.moo`` asks.

    Raises:
        ValueError: with a bias, which neither of those families has.
    """

    def __init__(self, *args: Any, config: Any, bias: bool, **kw: Any) -> None:
        super().__init__(*args, config=config, bias=bias, **kw)
        if bias:
            raise ValueError("a norm or factor after a linear layer with bias")
        self.factor = float(config.moo.residual_multiplier)
        self.post_norm = (
            Norm(config, self.output_size, eps=config.layernorm_epsilon) if config.moo.post_norms else None
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[s, b, in / tp]`` to ``[s, b, out]``, its sequence cut under sequence parallelism."""
        out, bias = super().forward(x)
        if self.post_norm is not None:
            out = self.post_norm(out)
        if self.factor != 1.0:
            out = out * self.factor
        return out, bias


class BiasedExpertRowParallel(RowParallelLinear):
    """Second linear of an expert that has biases and is not cut over tensor parallelism (GPT-OSS).

    Under sequence parallelism Megatron's own hands its output on as a view of a reduction over one rank, to which its
    MLP then adds the bias in place: autograd forbids that. And it marks the bias as a partial sum of the
    tensor-parallel ranks, although an expert's gradients are summed over exactly those ranks as its data-parallel
    peers.
    """

    def __init__(self, *args: Any, **kw: Any) -> None:
        super().__init__(*args, **kw)
        self.sequence_parallel = False
        if self.bias is not None:
            self.bias.sequence_parallel = False

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``[tokens, in]`` to ``[tokens, out]`` and the bias."""
        out, bias = super().forward(x)
        return out.clone(), bias
