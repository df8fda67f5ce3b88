"""Projection onto the simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def project(y: Tensor, present: Tensor) -> Tensor:
    """The point of the simplex over the present entries that is closest to ``y``, both ``[B, K]``; 0
    elsewhere.

    Held, Wolfe and Crowder, "Validation of subgradient optimization", Math. Program. 6, 1974.
    """
    top = torch.where(present, y, -torch.inf).amax(-1, keepdim=True)
    # Entries 1 below the largest get nothing: cut there, so that none can drown the others in the sums.
    y = torch.where(present, y - top, -2.0).clamp(min=-2.0)
    ordered = y.sort(dim=-1, descending=True).values
    count = torch.arange(1, y.shape[-1] + 1, dtype=y.dtype, device=y.device)
    excess = (ordered.cumsum(-1) - 1.0) / count
    last = (ordered > excess).sum(-1, keepdim=True).clamp(min=1)
    return torch.where(present, (y - excess.gather(-1, last - 1)).clamp(min=0.0), 0.0)
