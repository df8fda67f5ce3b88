"""Find the support of a small program by pivoting, with a certificate: a CPU's way around the search.

From all rows on, each round solves exactly on a support, drops the rows whose weight is negative and takes in those
that the solution leaves with a negative slack; on ordinary blocks two or three rounds end it. Where the optimality
conditions hold to rounding, the point is the solution, and no interior-point steps are taken; what is left goes to
them. After the block principal pivoting of Portugal, Júdice and Vicente, Math. Comp. 63, 1994.

Each round looks at values, so a device that would have to be waited for keeps the fixed number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .linalg import cholesky, may_branch, ridged

_ROUNDS = 8
_EXACT = 1e-13
# A pivot below this share of a row's square: supports are not told apart by their signs.
_DEPENDENT = 1e-6

#: Solves on ``support [B, K]`` (1 or 0): x ``[B, K]`` and the slack ``[B, K]`` of every row.
OnSupport = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def with_pivoting(
    C: Tensor, present: Tensor, ridge: float, on_support: OnSupport, search: Callable[[Tensor], Tensor]
) -> Tensor:
    """x ``[B, K]`` of every block, 0 on absent rows.

    Args:
        C: ``[B, K, K]`` with a diagonal of about one, 0 for absent rows.
        present: ``[B, K]``, 1 on present rows.
        ridge: above the rounding of C.
        on_support: ``(blocks [b] of int64, support [b, K]) -> x, slack``, both ``[b, K]`` in units of the rows.
        search: ``blocks [b] -> x``; for the blocks that pivoting did not settle.
    """
    everything = torch.arange(C.shape[0], device=C.device)
    if not may_branch(C):
        return search(everything)
    x = torch.zeros_like(present)
    absent = torch.diag_embed(1.0 - present)
    pivots = cholesky(ridged(C + absent, ridge)).diagonal(dim1=-2, dim2=-1).square()
    sound = (pivots > _DEPENDENT).all(-1)
    rest, support = everything[sound], present[sound]
    for _ in range(_ROUNDS):
        if not rest.numel():
            break
        found, slack = on_support(rest, support)
        inside = support > 0
        wrong = torch.where(inside, torch.maximum(-found, slack.abs()), -slack) * present[rest]
        settled = wrong.amax(-1) <= _EXACT
        x[rest[settled]] = found[settled].clamp(min=0.0)
        open_ = ~settled
        support = torch.where(inside, found > 0, slack < 0)[open_].to(x.dtype) * present[rest[open_]]
        rest = rest[open_]
    left = torch.cat([everything[~sound], rest])
    if left.numel():
        x[left] = search(left)
    return x
