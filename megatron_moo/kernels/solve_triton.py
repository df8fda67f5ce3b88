"""Launches of the solvers; ``solve.py`` says when."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import triton

from megatron_moo.kernels.cagrad_triton import cagrad_kernel
from megatron_moo.kernels.dual_triton import dualproj_kernel, upgrad_kernel
from megatron_moo.kernels.mgda_triton import mgda_kernel
from megatron_moo.kernels.segments import on_device

# As many steps as the twins take (moo/nnls.py, moo/cagrad.py).
NNLS_STEPS = 20
CONE_STEPS = 15
CONE_ROUNDS = 2
EPS = torch.finfo(torch.float64).eps
_NNLS = {"mgda": mgda_kernel, "upgrad": upgrad_kernel, "dualproj": dualproj_kernel}


def warps(kp: int) -> int:
    """Warps for a matrix ``[kp, kp]``: 2 to 4 fp64 values a thread."""
    return max(1, min(8, kp * kp // 128))


def launch_solve(
    name: str, gramians: torch.Tensor, preference: torch.Tensor | None, options: Mapping[str, Any]
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weights ``[B, K]`` fp64 and the flags that the method would set.

    Args:
        name: one of ``SOLVED``.
        gramians: ``[B, K, K]`` fp64, B >= 1.
        preference: ``[K]`` or ``[B, K]``, or None.
        options: the method's.
    """
    blocks, k = gramians.shape[:2]
    device = gramians.device
    if preference is None:
        preference = torch.ones(k, dtype=torch.float64, device=device)
    preference = torch.as_tensor(preference, device=device).double().contiguous()
    stride = k if preference.dim() == 2 else 0
    weights = torch.empty(blocks, k, dtype=torch.float64, device=device)
    bits = torch.empty(blocks, k, dtype=torch.int32, device=device)
    kp = triton.next_power_of_2(k)
    arguments = (gramians.contiguous(), preference, stride, weights, bits)
    constants = {"RIDGE": k * EPS, "K": k, "KP": kp, "num_warps": warps(kp)}
    if name in _NNLS:
        _NNLS[name][(blocks,)](*arguments, STEPS=NNLS_STEPS, **constants)
    else:
        cagrad_kernel[(blocks,)](
            *arguments, _option(float(options["c"]), device), STEPS=CONE_STEPS + k // 4, ROUNDS=CONE_ROUNDS,
            EPS=EPS, **constants,
        )  # fmt: skip
    flags = {"nonfinite": bits & 1 != 0, "absent": bits & 2 != 0, "all_bad": (bits & 2 != 0).all(-1)}
    if name == "cagrad":
        flags["undefined"] = (bits & 4 != 0).any(-1)
    return weights, flags


@lru_cache(maxsize=16)
def _option(value: float, device: torch.device) -> torch.Tensor:
    """fp64 on the device: as a kernel's argument a number would be rounded to fp32."""
    return on_device(torch.tensor([value], dtype=torch.float64), device)
