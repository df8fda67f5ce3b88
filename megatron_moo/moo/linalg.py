"""Small batched linear algebra without a host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor


def cholesky(H: Tensor) -> Tensor:
    """Lower Cholesky factor of ``[B, K, K]``; no check of success (the checking one waits for the device)."""
    return torch.linalg.cholesky_ex(H, check_errors=False).L


def cholesky_solve(L: Tensor, rhs: Tensor) -> Tensor:
    """``(L L^T)^{-1} rhs`` for ``rhs [B, K]``."""
    return torch.cholesky_solve(rhs.unsqueeze(-1), L).squeeze(-1)
