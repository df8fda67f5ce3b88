"""What a step's Gramians say about conflict (DESIGN section 4, "Logged each step")."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from megatron_moo.buckets.step import Resolved


def cosines(gramian: torch.Tensor) -> torch.Tensor:
    """Cosines between rows, ``[..., K, K]``; NaN where a row is zero (an absent language has no direction)."""
    s = gramian.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    return gramian / (s[..., :, None] * s[..., None, :])


def conflict_rates(gramians: torch.Tensor) -> torch.Tensor:
    """Share of pairs with a negative cosine in each block, ``[B]``; NaN for a block with fewer than two rows."""
    k = gramians.shape[-1]
    upper = torch.triu(torch.ones(k, k, dtype=torch.bool, device=gramians.device), diagonal=1)
    c = cosines(gramians)[..., upper]
    known = ~c.isnan()
    return ((c < 0) & known).sum(-1) / known.sum(-1)


def overall_conflict_rate(gramians: torch.Tensor) -> float:
    """Share of (block, pair) with a negative cosine."""
    k = gramians.shape[-1]
    upper = torch.triu(torch.ones(k, k, dtype=torch.bool, device=gramians.device), diagonal=1)
    c = cosines(gramians)[..., upper]
    known = (~c.isnan()).sum()
    return float((c < 0).sum() / known)


def same_cosine(same: torch.Tensor) -> float | None:
    """Mean cosine between two positions of one objective (the noise floor), or None when there was no such pair.

    Args:
        same: ``[K, 3]``, inner product and squared norms (``Resolved.same``).
    """
    norms = (same[:, 1] * same[:, 2]).sqrt()
    seen = norms > 0
    return float((same[seen, 0] / norms[seen]).mean()) if bool(seen.any()) else None


def moo_record(
    resolved: Resolved, method: str, block: str, blocks: Sequence[str], objectives: Sequence[str]
) -> dict:
    """The ``moo`` part of a line of metrics.jsonl (DESIGN section 8)."""
    from megatron_moo.moo import min_norm_weights

    gramians = resolved.gramians
    model = gramians.sum(0, keepdim=True)
    every = torch.cat([gramians, model])
    w = min_norm_weights(every)
    stationarity = _norms(every, w)
    rates = conflict_rates(gramians)
    return {
        "method": method,
        "block": block,
        "conflict_rate": _number(overall_conflict_rate(gramians)),
        "cosine": [[_number(x) for x in row] for row in cosines(model[0]).tolist()],
        "cosine_same": same_cosine(resolved.same),
        "weights": {
            name: dict(zip(objectives, map(_number, row), strict=True))
            for name, row in zip(blocks, resolved.weights.tolist(), strict=True)
        },
        "stationarity": dict(zip([*blocks, "model"], map(_number, stationarity.tolist()), strict=True)),
        "norm": dict(zip(blocks, map(_number, _norms(gramians, resolved.weights).tolist()), strict=True)),
        "conflict": dict(zip(blocks, map(_number, rates.tolist()), strict=True)),
        "staleness": resolved.staleness,
        "dropped": [name for name, gone in zip(objectives, resolved.dropped.tolist(), strict=True) if gone],
    }


def _norms(gramians: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Norm of w^T J per block, from its Gramian."""
    return (
        torch.einsum("bi,bij,bj->b", weights.to(gramians), gramians, weights.to(gramians)).clamp(min=0).sqrt()
    )


def _number(value: float) -> float | None:
    """JSON has no NaN: what is not a number is null."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
