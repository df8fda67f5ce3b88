"""The Triton form of ``norms.py``: a program keeps whole rows in registers."""

# Triton's functions take what Triton makes of their arguments: they have no Python types.
# ruff: noqa: ANN001, ANN201
# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from megatron_moo.kernels.pack_triton import rounded, widened

# Programs of the backward pass: each adds up the weight's gradient over its rows, the sums are added at the end.
PROGRAMS = 528  # 4 on each of 132 multiprocessors


@triton.jit
def forward_kernel(x, weight, y, inverse, n, eps, ZERO_CENTERED: tl.constexpr, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    live = k < n
    values = widened(tl.load(x + row * n + k, mask=live, other=0.0))
    w = widened(tl.load(weight + k, mask=live, other=0.0))
    if ZERO_CENTERED:
        w += 1.0
    r = 1.0 / tl.sqrt_rn(tl.sum(values * values, axis=0) / n + eps)
    tl.store(inverse + row, r)
    tl.store(y + row * n + k, rounded(values * r * w, y.dtype.element_ty), mask=live)


@triton.jit
def backward_kernel(
    grad, x, weight, inverse, dx, parts, rows, n, ZERO_CENTERED: tl.constexpr, WIDTH: tl.constexpr
):
    first = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, WIDTH)
    live = k < n
    w = widened(tl.load(weight + k, mask=live, other=0.0))
    if ZERO_CENTERED:
        w += 1.0
    total = tl.zeros([WIDTH], tl.float32)
    for row in range(first, rows, tl.num_programs(0)):
        g = widened(tl.load(grad + row * n + k, mask=live, other=0.0))
        r = tl.load(inverse + row)
        unit = widened(tl.load(x + row * n + k, mask=live, other=0.0)) * r
        total += g * unit
        g *= w
        d = r * (g - unit * (tl.sum(g * unit, axis=0) / n))
        tl.store(dx + row * n + k, rounded(d, dx.dtype.element_ty), mask=live)
    tl.store(parts + first * n + k, total, mask=live)


def _shape(n: int) -> dict[str, int]:
    width = triton.next_power_of_2(n)
    return {"WIDTH": width, "num_warps": max(1, min(16, width // 512))}


def launch_forward(
    x: torch.Tensor, weight: torch.Tensor, eps: float, zero_centered: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, r) of contiguous ``x [R, n]``; r ``[R]`` fp32."""
    y = torch.empty_like(x)
    inverse = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    forward_kernel[(x.shape[0],)](
        x, weight, y, inverse, x.shape[1], eps, ZERO_CENTERED=zero_centered, **_shape(x.shape[1])
    )
    return y, inverse


def launch_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    inverse: torch.Tensor,
    zero_centered: bool,
    most: int = PROGRAMS,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(dx, dw) for contiguous ``grad`` and ``x [R, n]``; dw in the weight's dtype; at most ``most`` programs."""
    rows, n = x.shape
    dx = torch.empty_like(x)
    programs = min(rows, most)
    parts = torch.empty(programs, n, dtype=torch.float32, device=x.device)
    backward_kernel[(programs,)](
        grad, x, weight, inverse, dx, parts, rows, n, ZERO_CENTERED=zero_centered, **_shape(n)
    )
    return dx, parts.sum(0).to(weight.dtype)
