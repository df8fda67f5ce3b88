"""Which tensors the exchange takes charge of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.exchange import Exchange


class Step:
    def __init__(self) -> None:
        self.on_resolved: list[Any] = []


@pytest.mark.parametrize("kind", ["another buffer", "part of our bucket"])
def test_what_is_not_ours_goes_to_the_stock_function(kind: str) -> None:
    """Megatron keeps its reduce-scatter in a global: a second DDP model calls the same function with its buckets."""
    calls = []

    def stock(output: torch.Tensor, input: torch.Tensor, **kw: Any) -> str:
        calls.append((output, input, kw))
        return "handle"

    def never(*args: Any, **kw: Any) -> None:
        raise AssertionError("only under known weights")

    ours = torch.zeros(8)
    exchange = Exchange(Step(), stock, never)
    exchange.register([BucketPlan("ours", ours, 0, (0, 1), ())])
    given = torch.zeros(8) if kind == "another buffer" else ours[:4]
    output = given[: given.numel() // 2]
    assert exchange(output, given, op=dist.ReduceOp.AVG, group=None, async_op=True) == "handle"
    [(out, sent, kw)] = calls
    assert out is output and sent is given
    assert kw == {"op": dist.ReduceOp.AVG, "group": None, "async_op": True}
