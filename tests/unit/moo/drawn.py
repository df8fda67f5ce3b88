"""1,000 seeded Jacobians of every size, as torch batches, and what the property tests measure on them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from megatron_moo.moo import METHODS, make_method

SIZES = {2: 200, 3: 200, 4: 200, 5: 150, 8: 150, 12: 100}  # 1,000 together
GRAMIAN_METHODS = [name for name, spec in METHODS.items() if spec.gramian]


@cache
def jacobians(k: int) -> Tensor:
    """``[B, k, k + 6]`` fp64: full rank, deficient, conflicting, agreeing, norms apart, ill-conditioned in
    turn."""
    generator = torch.Generator().manual_seed(1000 + k)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    b, n = SIZES[k], k + 6
    J = normal(b, k, n)
    kind = torch.arange(b) % 6
    low = normal(b, k, max(1, k // 2)) @ normal(b, max(1, k // 2), n)
    J = torch.where((kind == 1)[:, None, None], low, J)
    J = torch.where((kind == 2)[:, None, None], J - 1.2 * J.mean(1, keepdim=True), J)
    J = torch.where((kind == 3)[:, None, None], J.abs(), J)
    norms = 10.0 ** (-6 * torch.rand(b, k, 1, generator=generator, dtype=torch.float64))
    J = torch.where((kind == 4)[:, None, None], J * norms, J)
    squeezed = J * torch.logspace(0, -3, n, dtype=torch.float64)
    return torch.where((kind == 5)[:, None, None], squeezed, J)


def gramians(k: int) -> Tensor:
    J = jacobians(k)
    return J @ J.mT


def norm(J: Tensor) -> Tensor:
    """||J||_F per block."""
    return torch.linalg.matrix_norm(J)


def inputs(name: str, k: int) -> dict[str, Tensor]:
    """What the method needs beyond G."""
    values = torch.linspace(1.0, 2.0, k, dtype=torch.float64)
    return dict.fromkeys(METHODS[name].needs, values)


def combine(name: str, J: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    """(d, weights) of a fresh method."""
    w = make_method(name, **options)(J @ J.mT, **inputs(name, J.shape[-2]))
    return torch.einsum("bk,bkn->bn", w, J), w
