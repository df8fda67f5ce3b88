"""Checks of the solvers and norms, shared by the tests of the interpreter and of a GPU (see ``checks.py``)."""

from __future__ import annotations

import math

import torch

from megatron_moo.moo import make_method
from tests.unit.kernels.checks import random


def jacobians(k: int, kinds: int) -> torch.Tensor:
    """Blocks ``[kinds, k, k + 6]`` fp64: ordinary, deficient, stationary, norms far apart, with rows to drop."""
    J = random(5, k, k + 6, seed=k).double()
    if k > 2:
        J[1] = random(k, k // 2, seed=1).double() @ random(k // 2, k + 6, seed=2).double()
    J[2, 0] = -(torch.arange(1.0, k, dtype=torch.float64)[:, None] * J[2, 1:]).sum(0)
    J[3] *= 10.0 ** (-6 * torch.rand(k, 1, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    if k > 1:
        J[4], J[4, 1] = 1e30 * J[4], 0.0
    return J[:kinds]


def check_solve(device: str, method: str, k: int, kinds: int = 5, preferred: bool = False) -> float:
    """The direction of the method's own solution, to 1e-9 of ||J||_F (returned: the largest), and its flags."""
    from megatron_moo.kernels.solve_triton import launch_solve

    J = jacobians(k, kinds)
    twin = make_method(method)
    preference = torch.linspace(1.0, 2.0, k, dtype=torch.float64) if preferred else None
    gramians = J @ J.mT
    there = None if preference is None else preference.to(device)
    weights, flags = launch_solve(method, gramians.to(device), there, twin.options)
    expected = twin(gramians, preference=preference)
    error = torch.einsum("bk,bkn->bn", weights.cpu() - expected, J).norm(dim=1) / torch.linalg.matrix_norm(J)
    assert (error <= 1e-9).all(), error
    assert {name: flag.tolist() for name, flag in flags.items()} == {
        name: flag.tolist() for name, flag in twin.flags.items()
    }
    return error.max().item()


def check_solve_drops(device: str, method: str) -> None:
    """Rows that are not finite, or whose product with a sound row is not, do not touch the others."""
    from megatron_moo.kernels.solve_triton import launch_solve

    J = jacobians(3, 3)
    gramians = J @ J.mT
    gramians[0, 1, 1] = math.nan
    gramians[1] = math.inf
    gramians[2, 0, 2] = gramians[2, 2, 0] = math.nan
    twin = make_method(method)
    weights, flags = launch_solve(method, gramians.to(device), None, twin.options)
    expected = twin(gramians)
    assert torch.allclose(weights.cpu(), expected, rtol=1e-9, atol=1e-12)
    assert weights[0, 1] == 0 and not weights[1].any()
    assert flags["nonfinite"].tolist() == twin.flags["nonfinite"].tolist()
    assert flags["all_bad"].tolist() == twin.flags["all_bad"].tolist()


def check_norm(
    device: str,
    rows: int,
    n: int,
    dtype: torch.dtype,
    zero_centered: bool,
    weights: torch.dtype | None = None,
) -> float:
    """Forward and backward, by at most 4 programs, against autograd in fp64; the largest distance by its norm."""
    from megatron_moo.kernels.norms_triton import launch_backward, launch_forward

    x, weight = random(rows, n, seed=1).to(dtype), (0.1 * random(n, seed=2)).to(weights or dtype)
    grad = random(rows, n, seed=3).to(dtype)
    exact = [t.double().requires_grad_() for t in (x, weight)]
    w = exact[1] + 1.0 if zero_centered else exact[1]
    y = exact[0] / (exact[0].square().mean(-1, keepdim=True) + 1e-5).sqrt() * w
    y.backward(grad.double())
    assert exact[0].grad is not None and exact[1].grad is not None
    on_device = [t.to(device) for t in (x, weight, grad)]
    found, inverse = launch_forward(on_device[0], on_device[1], 1e-5, zero_centered)
    dx, dw = launch_backward(on_device[2], on_device[0], on_device[1], inverse, zero_centered, 4)
    assert found.dtype == dx.dtype == dtype and dw.dtype == weight.dtype
    # dx is a difference: what is left of it carries the rounding of what was subtracted.
    r = (exact[0].detach().square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    subtracted = (r * grad.double() * w.detach()).abs().max()
    results = (
        (found, y, 0.0),
        (dx, exact[0].grad, subtracted),
        (dw, exact[1].grad, exact[1].grad.abs().max()),
    )
    worst = 0.0
    for result, reference, size in results:
        error = (result.cpu().double() - reference.detach()).abs()
        step = 2**-8 if result.dtype == torch.bfloat16 else 2e-6
        assert (error <= step * reference.detach().abs() + 2e-6 * size).all(), error.max()
        worst = max(worst, (error.norm() / reference.detach().norm().clamp_min(1e-30)).item())
    return worst
