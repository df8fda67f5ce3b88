"""Rows that travel as bf16 or fp8: bytes counted, errors bounded, nothing that depends on who computed what."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megatron_moo.buckets.wire import WIRES, row_bytes
from tests.distributed.assemble import whole_update
from tests.distributed.case import Case
from tests.distributed.matrix import MOE, OVERLAP, SEQUENCE, SMALL_BUCKETS, TWO_INSTANCES
from tests.distributed.ranks import layout_worker
from tests.pool import RankPool


def loopback_bytes() -> int:
    """Bytes that this machine has sent to itself (the network interface's own counter)."""
    return int(Path("/sys/class/net/lo/statistics/tx_bytes").read_text())


def wire_worker(rank: int, world: int, wire: str, numel: int, slots: int) -> dict[str, int]:
    """A step of one large bucket; what the exchange counted and what the loopback interface did."""
    from megatron_moo.buckets.blocks import BucketPlan, Kind, Segment
    from megatron_moo.buckets.config import MooConfig
    from megatron_moo.buckets.exchange import Exchange
    from megatron_moo.buckets.step import MooStep
    from megatron_moo.moo import make_method

    class Schedule:
        def assignment(self, step: int) -> list[list[int]]:
            return [[(slot * world + lane) % 3 for lane in range(world)] for slot in range(slots)]

    grad, shard = torch.randn(numel, generator=torch.Generator().manual_seed(rank)), numel // world
    step = MooStep(MooConfig("mgda", slots=slots, wire=wire), make_method("mgda"), list("abc"), Schedule())
    plan = BucketPlan("bucket", grad, rank, tuple(range(world)), (Segment(0, shard, 0, Kind.OWN),))
    step.place([plan], ["block"], "", rank, counts_tokens=True)
    exchange = Exchange(step, dist.reduce_scatter_tensor, dist.reduce_scatter_tensor)
    exchange.register([plan])
    dist.barrier()
    before = loopback_bytes()
    dist.barrier()
    step.begin(0)
    for now in step.passes:
        step.begin_pass(now)
        exchange(plan.own, grad, group=dist.group.WORLD, async_op=True).wait()
        step.count(1.0)
        step.end_pass()
    dist.barrier()
    return {"counted": exchange.bytes_sent, "loopback": loopback_bytes() - before}


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(("world", "slots"), [(2, 1), (4, 2)])
def test_bytes(pool: RankPool, wire: str, world: int, slots: int) -> None:
    """What is counted is the formula, and what the loopback interface carried (headers of TCP beside it)."""
    numel = 1 << 22
    runs = [pool.run(wire_worker, world, wire, numel, slots) for _ in range(3)]
    formula = slots * (world - 1) * row_bytes(numel // world, wire)
    assert all(rank["counted"] == formula for ranks in runs for rank in ranks)
    # The counter is the machine's: other traffic may only add to it, so the least of three counts.
    assert 0.99 < min(ranks[0]["loopback"] for ranks in runs) / (world * formula) < 1.15


def feedback_worker(rank: int, world: int, group: int, steps: list[int]) -> torch.Tensor:
    """Rows that arrive in the last of some steps, ``[rows, shard]``; with ``group`` in two stages in most of them."""
    from datetime import timedelta

    from megatron_moo.buckets.blocks import BucketPlan, Kind, Segment
    from megatron_moo.buckets.config import MooConfig
    from megatron_moo.buckets.exchange import Exchange
    from megatron_moo.buckets.hierarchy import find_hierarchies
    from megatron_moo.buckets.step import MooStep
    from megatron_moo.moo import make_method

    class Schedule:
        def assignment(self, step: int) -> list[list[int]]:
            return [[lane // group if group > 1 else (step + lane) % 3 for lane in range(world)]]

    numel = 128 * world
    rows = [torch.randn(numel, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    config = MooConfig(
        "mgda", wire="fp8", wire_feedback=True, exchange="hierarchical" if group > 1 else "flat"
    )
    step = MooStep(config, make_method("mgda"), list("abc"), Schedule())
    lanes, segments = tuple(range(world)), (Segment(0, numel // world, 0, Kind.OWN),)
    grad = torch.zeros(numel)
    plan = BucketPlan("bucket", grad, rank, lanes, segments, ranks=lanes)
    nodes = [member // group for member in range(world)]
    find_hierarchies([plan], config.exchange, "fp8", Schedule(), nodes, 1, timedelta(seconds=60))
    step.place([plan], ["block"], "", rank, counts_tokens=True)
    exchange = Exchange(step, dist.reduce_scatter_tensor, dist.reduce_scatter_tensor)
    exchange.register([plan])
    arrived: list[torch.Tensor] = []
    stock = step.arrived
    step.arrived = lambda plan, got: (arrived.append(got.clone()), stock(plan, got))[1]  # type: ignore[method-assign]
    for number in steps:
        step.begin(number)
        step.begin_pass(step.passes[0])
        grad.copy_(rows[step.objective])
        exchange(plan.own, grad, group=dist.group.WORLD, async_op=True).wait()
        step.count(1.0)
        step.end_pass()
    return arrived[-1]


def test_feedback_follows_the_language(pool: RankPool) -> None:
    """Three languages take turns on two lanes: in step 3 each is paid what the wire lost of it in step 0."""
    turned = pool.run(feedback_worker, 2, 1, [0, 1, 2, 3])
    still = pool.run(feedback_worker, 2, 1, [0, 3])
    fresh = pool.run(feedback_worker, 2, 1, [3])
    for one, other, first in zip(turned, still, fresh, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, first)


def test_a_flat_step_leaves_the_debt_of_two_stages(pool: RankPool) -> None:
    """Every 100th step goes flat, where shards are other ones: it neither pays nor forgets."""
    between = pool.run(feedback_worker, 4, 2, [98, 99, 100, 101])
    without = pool.run(feedback_worker, 4, 2, [98, 99, 101])
    fresh = pool.run(feedback_worker, 4, 2, [100, 101])
    for one, other, first in zip(between, without, fresh, strict=True):
        assert torch.equal(one, other) and not torch.equal(one, first)


def test_bytes_of_a_row() -> None:
    assert row_bytes(12800, "fp8") == 12800 + 400, (
        "a quarter of fp32's, and a scale of 4 bytes for 128 values"
    )
    assert (row_bytes(1000, "fp32"), row_bytes(1000, "bf16"), row_bytes(1000, "fp8")) == (4000, 2000, 8 * 132)


# Largest relative error of a value: bf16 rounds to 8 bits, e4m3 to 4; those far below their group's largest lose more.
BOUNDS = {"bf16": 4e-3, "fp8": 4e-2}
# Of the whole model, its layers and its embedding.
COSINES = {"bf16": 1e-3, "fp8": 1e-2}
LAYOUTS = (
    Case("dp 2", dp=2, method="mean", flags=SMALL_BUCKETS),
    Case("dp 4, 2 slots", dp=4, slots=2, objectives=8, method="mean", flags=OVERLAP),
    Case("dp 2, 3 slots, recompute", dp=2, slots=3, objectives=6, recompute=1, method="mean"),
    Case("tp 2, sp", dp=2, tp=2, method="mean", flags=SEQUENCE),
    Case("pp 2, tied", dp=2, pp=2, micro_batches=2, method="mean", flags=OVERLAP),
    Case("moe, ep 2", dp=4, ep=2, method="mean", flags=MOE),
    Case("two instances", dp=4, method="mean", flags=TWO_INSTANCES),
)


def cosines(gramians: torch.Tensor) -> torch.Tensor:
    """``[B, K, K]``."""
    norm = gramians.diagonal(dim1=-2, dim2=-1).sqrt()
    return gramians / (norm[:, :, None] * norm[:, None, :]).clamp(min=1e-300)


@pytest.mark.parametrize("wire", ["bf16", "fp8"])
@pytest.mark.parametrize("case", LAYOUTS, ids=lambda case: case.name)
def test_error_of_update_and_cosines(
    pool: RankPool, case: Case, wire: str, record_property: Callable[[str, object], None]
) -> None:
    """Cosines of the whole model, of every layer, and of the head, which is a norm of 32 values here.

    A block averages the rounding of its values out: of so few a cosine is known no better than a value.
    """
    exact = pool.run(layout_worker, case.world, case)
    rounded = pool.run(layout_worker, case.world, dataclasses.replace(case, wire=wire))
    mine, theirs = whole_update(rounded), whole_update(exact)
    for name, value in theirs.items():
        off = float((mine[name] - value).norm() / value.norm().clamp(min=1e-30))
        assert off < BOUNDS[wire], f"{name}: {off:.1e}"
    here, there = rounded[0]["gramians"][0], exact[0]["gramians"][0]
    off = float((cosines(here.sum(0)[None]) - cosines(there.sum(0)[None])).abs().max())
    assert 0 < off < COSINES[wire]
    for block, apart in zip(
        exact[0]["blocks"], (cosines(here) - cosines(there)).abs().flatten(1), strict=True
    ):
        record_property(block, float(apart.max()))
        assert float(apart.max()) < (BOUNDS if block == "head" else COSINES)[wire], block
    assert rounded[0]["bytes"] < exact[0]["bytes"] or case.recompute


@pytest.mark.parametrize("wire", ["bf16", "fp8"])
def test_the_update_does_not_depend_on_who_computed_what(pool: RankPool, wire: str) -> None:
    """A rank's own row is rounded like the others."""
    case = Case("turned", dp=2, slots=2, objectives=4, method="cagrad", flags=SMALL_BUCKETS, wire=wire)
    here = whole_update(pool.run(layout_worker, 2, case))
    turned = whole_update(pool.run(layout_worker, 2, dataclasses.replace(case, turn=1)))
    for name, value in here.items():
        torch.testing.assert_close(turned[name], value, rtol=1e-5, atol=1e-6 * float(value.norm()), msg=name)


@pytest.mark.parametrize("wire", ["bf16", "fp8"])
def test_a_bad_language_is_seen_through_the_wire(pool: RankPool, wire: str) -> None:
    case = Case("bad", dp=2, slots=2, objectives=4, method="cagrad", poison=(2,), wire=wire)
    for bad in (float("nan"), float("inf")):
        ranks = pool.run(layout_worker, 2, dataclasses.replace(case, poison_with=bad))
        assert ranks[0]["dropped"] == [False, False, True, False]
        assert all(torch.isfinite(value).all() for rank in ranks for value in rank["params"].values())
