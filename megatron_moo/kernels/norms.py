"""RMSNorm, for a GPU without Transformer Engine: forward and backward in one pass over memory each.

    r = 1 / sqrt(mean(x^2) + eps),  y = x r w,  with w = weight or 1 + weight
    dx = r (g w - x r mean(g w x r)),  dw = sum over rows of g x r

Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019. Everything between reading and writing is
fp32, also 1 + weight, which in bf16 would lose what training adds to a small weight.
"""

from __future__ import annotations

from typing import Any

import torch

from megatron_moo.kernels._choice import on_triton

MAX_WIDTH = 16384  # values of a row that one program keeps in registers


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-5, zero_centered: bool = False
) -> torch.Tensor:
    """Normalise the last dimension of ``x``; differentiable in ``x`` and ``weight``.

    Args:
        x: ``[..., n]`` fp32 or bf16. weight: ``[n]`` fp32 or bf16.
        eps: added to the mean square.
        zero_centered: apply 1 + weight.

    Returns:
        like ``x``.
    """
    if on_triton(x) and x.shape[-1] <= MAX_WIDTH and x.numel() and {x.dtype, weight.dtype} <= _DTYPES:
        return _Fused.apply(x, weight, eps, zero_centered)
    return rms_norm_torch(x, weight, eps, zero_centered)


_DTYPES = {torch.float32, torch.bfloat16}


def rms_norm_torch(x: torch.Tensor, weight: torch.Tensor, eps: float, zero_centered: bool) -> torch.Tensor:
    """The twin of the Triton kernels; autograd derives its backward."""
    wide = x.float() if x.dtype == torch.bfloat16 else x
    w = weight.to(wide.dtype) + 1.0 if zero_centered else weight.to(wide.dtype)
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * w).to(x.dtype)


class _Fused(torch.autograd.Function):
    """The Triton kernels."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float, zero_centered: bool
    ) -> torch.Tensor:
        from megatron_moo.kernels.norms_triton import launch_forward

        flat = x.reshape(-1, x.shape[-1]).contiguous()
        y, inverse = launch_forward(flat, weight.contiguous(), eps, zero_centered)
        ctx.save_for_backward(flat, weight.contiguous(), inverse)
        ctx.zero_centered = zero_centered
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        from megatron_moo.kernels.norms_triton import launch_backward

        x, weight, inverse = ctx.saved_tensors
        dx, dw = launch_backward(grad.reshape(x.shape).contiguous(), x, weight, inverse, ctx.zero_centered)
        return dx.view(grad.shape), dw, None, None
