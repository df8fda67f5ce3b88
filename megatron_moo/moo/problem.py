"""What every solver receives: the Gramian of one batch of blocks, cleaned and with its scale taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

Vector = Tensor | Sequence[float] | None


@dataclass(frozen=True)
class Problem:
    """B blocks with K rows each, in fp64. Absent rows (zero or non-finite) are zero in ``G`` and ``u``.

    Attributes:
        G: ``[B, K, K]`` Gramian divided by ``scale**2``, exactly; its largest row has a norm in [1/2, 1).
        s: ``[B, K]`` row norms of ``G``; 1 for absent rows.
        C: ``[B, K, K]`` cosines ``G / (s s^T)``: unit diagonal, and the identity on absent rows.
        scale: ``[B]`` the power of two above the norm of the largest row; 1 where every row is absent.
        present: ``[B, K]`` bool. ``count``: ``[B]`` present rows, at least 1, fp64.
        u: ``[B, K]`` preference over the present rows, sums to 1. ``p``: the same, not renormalised over
            them.
        eps: rounding of the dtype that the Gramian came in.
        tokens, losses: ``[B, K]`` or None. cross: ``[B, K, K]`` or None, divided by ``scale**2``.
        order: ``[B, K, K-1]`` or None. step, block: as given to the method.
        flags: what the solver has to report, by name; solvers add to it.
    """

    G: Tensor
    s: Tensor
    C: Tensor
    scale: Tensor
    present: Tensor
    count: Tensor
    u: Tensor
    p: Tensor
    eps: float
    tokens: Tensor | None
    losses: Tensor | None
    cross: Tensor | None
    order: Tensor | None
    step: int
    block: tuple[str, ...] | None
    flags: dict[str, Tensor]

    @property
    def m(self) -> Tensor:
        """``present`` as numbers."""
        return self.present.to(self.G.dtype)


def block_names(problem: Problem) -> tuple[str, ...]:
    """The names of the blocks; without names they are called "0", "1", …"""
    return problem.block if problem.block is not None else tuple(str(i) for i in range(problem.p.shape[0]))


def shaped(value: Any, like: Tensor, tail: tuple[int, ...]) -> Tensor:
    """``value`` as fp64 ``[B, *tail]`` on the device of ``like`` ``[..., K, K]``; leading dimensions
    broadcast.

    Raises:
        ValueError: for a shape that does not fit.
    """
    tensor = torch.as_tensor(value, device=like.device)
    lead = like.shape[:-2]
    try:
        return tensor.expand(*lead, *tail).reshape(-1, *tail)
    except RuntimeError:
        raise ValueError(f"shape {tuple(tensor.shape)} does not fit {(*lead, *tail)}") from None


def build_problem(
    gramian: Tensor,
    normalize: str,
    tokens: Vector,
    losses: Vector,
    cross: Tensor | None,
    preference: Vector,
    order: Tensor | None,
    step: int | None,
    block: Sequence[str] | None,
) -> Problem:
    """Clean ``gramian [..., K, K]``: drop zero and non-finite rows, take the scale out.

    Raises:
        ValueError: for shapes that do not fit.
    """
    if gramian.dim() < 2 or gramian.shape[-1] != gramian.shape[-2] or gramian.shape[-1] == 0:
        raise ValueError(f"a Gramian has shape [..., K, K] with K >= 1, not {tuple(gramian.shape)}")
    k = gramian.shape[-1]
    raw = gramian.detach().reshape(-1, k, k).to(torch.float64)
    if block is not None and len(block) != raw.shape[0]:
        raise ValueError(f"{len(block)} block names for {raw.shape[0]} blocks")
    finite, present, G, s, scale = _clean(raw)
    C = _cosines(G, s)
    p = _preference(preference, gramian, present)
    share = torch.where(present, p, 0.0)
    total = share.sum(-1, keepdim=True)
    even = present.to(G.dtype) / present.sum(-1, keepdim=True).clamp(min=1)
    u = torch.where(total > 0, share / torch.where(total > 0, total, 1.0), even)
    problem = Problem(
        G=G,
        s=s,
        C=C,
        scale=scale,
        present=present,
        count=present.sum(-1).clamp(min=1).to(G.dtype),
        u=u,
        p=share,
        eps=torch.finfo(gramian.dtype).eps if gramian.is_floating_point() else torch.finfo(torch.float64).eps,
        tokens=None if tokens is None else shaped(tokens, gramian, (k,)).to(torch.float64),
        losses=None if losses is None else shaped(losses, gramian, (k,)).to(torch.float64),
        cross=None if cross is None else _cross(shaped(cross, gramian, (k, k)), scale, present),
        order=None if order is None else shaped(order, gramian, (k, k - 1)).to(torch.int64),
        step=0 if step is None else int(step),
        block=None if block is None else tuple(block),
        flags={"nonfinite": ~finite, "absent": ~present, "all_bad": ~present.any(-1)},
    )
    return problem if normalize == "none" else _unit_rows(problem, normalize)


def _clean(raw: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(finite rows, present rows, symmetric G over its scale squared, row norms, scale)."""
    diagonal = raw.diagonal(dim1=-2, dim2=-1)
    finite = diagonal.isfinite() & (diagonal >= 0)
    pair = finite.unsqueeze(-1) & finite.unsqueeze(-2)
    # A row whose own norm is finite can still have a broken product with another finite row: neither can be
    # trusted.
    finite = finite & (raw.isfinite() | ~pair).all(-1) & (raw.isfinite() | ~pair).all(-2)
    present = finite & (diagonal >= torch.finfo(torch.float64).tiny)
    pair = present.unsqueeze(-1) & present.unsqueeze(-2)
    G = torch.where(pair, raw, 0.0)
    G = 0.5 * G + 0.5 * G.mT
    largest = G.diagonal(dim1=-2, dim2=-1).amax(-1).sqrt()
    one = torch.ones_like(largest)
    scale = torch.where(present.any(-1), torch.ldexp(one, torch.frexp(largest).exponent), one)
    # Divided twice: the square of the scale may not be a number where the scale is.
    G = G / scale[:, None, None] / scale[:, None, None]
    s = torch.where(present, G.diagonal(dim1=-2, dim2=-1), 1.0).sqrt()
    return finite, present, G, s, scale


def _cosines(G: Tensor, s: Tensor) -> Tensor:
    C = (G / s.unsqueeze(-1) / s.unsqueeze(-2)).clamp(-1.0, 1.0)
    eye = torch.eye(G.shape[-1], dtype=G.dtype, device=G.device)
    return C * (1.0 - eye) + eye


def _preference(preference: Vector, gramian: Tensor, present: Tensor) -> Tensor:
    k = gramian.shape[-1]
    if preference is None:
        return torch.full(present.shape, 1.0 / k, dtype=torch.float64, device=gramian.device)
    p = shaped(preference, gramian, (k,)).to(torch.float64)
    return p / p.sum(-1, keepdim=True)


def _cross(cross: Tensor, scale: Tensor, present: Tensor) -> Tensor:
    pair = present.unsqueeze(-1) & present.unsqueeze(-2)
    clean = torch.where(pair, cross.to(torch.float64), 0.0)
    return torch.where(clean.isfinite(), clean, 0.0) / scale[:, None, None] / scale[:, None, None]


def _unit_rows(problem: Problem, normalize: str) -> Problem:
    """The same blocks with every row at norm 1 ("unit") or at the norm of the largest one ("max")."""
    pair = problem.present.unsqueeze(-1) & problem.present.unsqueeze(-2)
    largest = problem.scale * torch.where(problem.present, problem.s, 0.0).amax(-1)
    largest = torch.where(largest > 0, largest, 1.0)
    cross = problem.cross
    if cross is not None:
        cross = cross / problem.s.unsqueeze(-1) / problem.s.unsqueeze(-2)
    return replace(
        problem,
        G=problem.C * pair,
        s=torch.ones_like(problem.s),
        scale=largest if normalize == "max" else torch.ones_like(largest),
        cross=cross,
    )
