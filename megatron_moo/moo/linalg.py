"""Small batched linear algebra without a host synchronisation.

``torch.linalg.eigh`` and the checked factorisations read a status back to the host; on a GPU that waits for
the device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def may_branch(values: Tensor) -> bool:
    """Whether Python may look at values: on a CPU, where nothing waits for it, unless the call is traced."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products over the last dimension, kept: ``[B, K], [B, K] -> [B, 1]``."""
    return (a * b).sum(-1, keepdim=True)


def mv(A: Tensor, x: Tensor) -> Tensor:
    """Matrix times vector: ``[B, K, K], [B, K] -> [B, K]``."""
    return (A @ x.unsqueeze(-1)).squeeze(-1)


def ridged(A: Tensor, ridge: float) -> Tensor:
    """``A + ridge I``."""
    return A + ridge * torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)


def plus_diagonal(A: Tensor, d: Tensor) -> Tensor:
    """``A + diag(d)`` in new memory."""
    H = A.clone()
    H.diagonal(dim1=-2, dim2=-1).add_(d)
    return H


def cholesky(H: Tensor) -> Tensor:
    """Lower Cholesky factor of ``[B, K, K]``; no check of success (the checking one waits for the device)."""
    return torch.linalg.cholesky_ex(H, check_errors=False).L


def cholesky_solve(L: Tensor, rhs: Tensor) -> Tensor:
    """``(L L^T)^{-1} rhs`` for ``rhs [B, K]``."""
    return torch.cholesky_solve(rhs.unsqueeze(-1), L).squeeze(-1)


def exact_residual(A: Tensor, x: Tensor, b: Tensor) -> Tensor:
    """``b - A x`` with about 22 bits more than fp64 has, ``[B, K]``, for K up to 64.

    The leading 22 bits of A and of x (counted from the largest of each block) multiply and add without any
    rounding.
    """
    A1, x1 = _leading(A, (-2, -1)), _leading(x, (-1,))
    return b - mv(A1, x1) - (mv(A1, x - x1) + mv(A - A1, x))


def exact_root_rest(a: Tensor, root: Tensor) -> Tensor:
    """``sqrt(a) - root`` for ``root`` = sqrt(a) as rounded, entry by entry."""
    high = _leading(root.unsqueeze(-1), (-1,)).squeeze(-1)
    low = root - high
    return (((a - high * high) - 2.0 * high * low) - low * low) / (2.0 * root)


def _leading(a: Tensor, dims: tuple[int, ...]) -> Tensor:
    """``a`` rounded to 2^-22 of the power of two above its largest entry over ``dims``."""
    peak = a.abs().amax(dims, keepdim=True)
    anchor = torch.ldexp(torch.full_like(peak, 1.5), torch.frexp(peak).exponent + (52 - 22))
    return (a + anchor) - anchor


def eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ascending ``[B, K]`` and eigenvectors in columns ``[B, K, K]`` of symmetric ``A``.

    LAPACK on the CPU, where nothing has to wait; Jacobi rotations on any other device.
    """
    if A.device.type == "cpu":
        values, vectors = torch.linalg.eigh(A)
        return values, vectors
    return jacobi_eigh(A)


def jacobi_eigh(A: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`eigh` by a fixed number of sweeps of Jacobi rotations, K/2 disjoint planes at a time."""
    k = A.shape[-1]
    V = torch.eye(k, dtype=A.dtype, device=A.device).expand_as(A)
    if k == 1:
        return A[..., 0], V.clone()
    rounds = [_pairs(k, r, A.device) for r in range(k - 1 + k % 2)]
    for _ in range(6 + k.bit_length()):
        for i, j in rounds:
            R = _rotations(A, i, j)
            A = R.mT @ A @ R
            V = V @ R
    values, order = A.diagonal(dim1=-2, dim2=-1).sort(dim=-1)
    return values, V.gather(-1, order.unsqueeze(-2).expand_as(V))


def _pairs(k: int, r: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Round r of a round-robin tournament of k players: the two sides of every game."""
    even = k + k % 2
    ring = torch.arange(even - 1, device=device)
    ring = (ring + r) % (even - 1)
    table = torch.cat([torch.full((1,), even - 1, device=device), ring])
    left, right = table[: even // 2], table[even // 2 :].flip(0)
    if k % 2:  # the last player is a ghost and always plays in the first game
        left, right = left[1:], right[1:]
    return left, right


def _rotations(A: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """The product of the plane rotations that bring ``A[i, j]`` to zero, ``[B, K, K]``."""
    a, b, c = A[..., i, i], A[..., j, j], A[..., i, j]
    theta = 0.5 * torch.atan2(2.0 * c, b - a)
    # The smaller of the two angles keeps the iteration from swapping eigenvalues for ever.
    theta = theta - (torch.pi / 2) * torch.round(theta / (torch.pi / 2))
    cos, sin = theta.cos(), theta.sin()
    R = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand_as(A).clone()
    R[..., i, i], R[..., j, j] = cos, cos
    R[..., i, j], R[..., j, i] = sin, -sin
    return R
