"""Rows that are only summands until Megatron's finalize adds them up.

Under sequence parallelism the gradient of a norm is a partial sum over tensor-parallel ranks; an embedding that is
tied over pipeline stages has one summand on the first stage and one on the last. A Gramian is quadratic, so it must
see the sums: they are formed here on a copy. The combination is linear, so the summands themselves are combined and
left for finalize to add. With several distributed-optimizer instances a row is a sum over the instances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def sum_over(tensors: Sequence[torch.Tensor], group: Any) -> None:
    """All-reduce tensors in place.

    Megatron calls the exchange inside a ``_coalescing_manager`` of the bucket's data-parallel group. That one holds
    back all-reduces of its own group only; ``group`` is another one, so nothing is queued here.
    """
    for tensor in tensors:
        if tensor.numel():
            dist.all_reduce(tensor, group=group)


def summed_copies(columns: Sequence[Sequence[torch.Tensor]], group: Any) -> list[torch.Tensor]:
    """Sum copies of rows over ``group`` in one all-reduce.

    Args:
        columns: per segment the pieces ``[P_s, n]`` that hold its rows; the same shapes on every rank of the group.
        group: process group.

    Returns:
        Per segment the summed rows ``[P, n]`` fp32.
    """
    rows = [torch.cat([piece.float() for piece in pieces]) for pieces in columns]
    flat = torch.cat([x.flatten() for x in rows])
    dist.all_reduce(flat, group=group)
    parts = flat.split([x.numel() for x in rows])
    return [part.view_as(x) for part, x in zip(parts, rows, strict=True)]
