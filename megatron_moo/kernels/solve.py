"""Weights of every block of the model in one launch: one program, a warp or a few, solves one block.

The twin of each kernel is the method itself (``megatron_moo.moo``), which is batched torch: the same mathematics
in a few hundred launches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from megatron_moo.kernels._choice import on_triton
from megatron_moo.kernels.rows import MAX_ROWS

SOLVED = ("mgda", "cagrad", "upgrad", "dualproj")


def solve_blocks(
    method: Callable[..., torch.Tensor],
    gramians: torch.Tensor,
    *,
    preference: torch.Tensor | None = None,
    **inputs: Any,
) -> torch.Tensor:
    """``method(gramians, preference=..., **inputs)``, in one launch where there is a kernel for it.

    There is one for :data:`SOLVED` with ``normalize=none`` on a GPU, for Gramians in fp64 and K up to 32; the method
    itself is called in every other case.

    Args:
        method: of ``megatron_moo.moo.make_method``; its ``flags`` are set as a call would set them.
        gramians: ``[B, K, K]``.
        preference: ``[K]`` or ``[B, K]``, uniform without it.
        inputs: what the method takes besides (tokens, step, block names …); those with a kernel use none of them.

    Returns:
        ``[B, K]`` fp64.
    """
    if has_kernel(method, gramians):
        from megatron_moo.kernels.solve_triton import launch_solve

        weights, flags = launch_solve(method.spec.name, gramians, preference, method.options)  # type: ignore[attr-defined]
        method.flags = flags  # type: ignore[attr-defined]
        return weights
    return method(gramians, preference=preference, **inputs)


def has_kernel(method: Any, gramians: torch.Tensor) -> bool:
    """Whether :func:`solve_blocks` uses a kernel for this method and these Gramians."""
    spec = getattr(method, "spec", None)
    return (
        spec is not None
        and spec.name in SOLVED
        and method.options.get("normalize", "none") == "none"
        and gramians.dim() == 3
        and gramians.dtype == torch.float64
        and gramians.shape[0] > 0
        and 1 <= gramians.shape[-1] <= MAX_ROWS
        and on_triton(gramians)
    )
