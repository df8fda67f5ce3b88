"""The exchange as a GPU runs it: on a stream of its own, which the end of the pass waits for, a launch for a bucket.

A stand-in takes the stream's place and the twins that of the kernels, so that what is tested is the order of events and
the tables that kernels are given. No GPU ran this.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest

from tests.distributed.assemble import errors
from tests.distributed.case import Case
from tests.distributed.matrix import OVERLAP, SEQUENCE, SMALL_BUCKETS, TWO_INSTANCES
from tests.distributed.ranks import reference_worker, train_steps
from tests.pool import RankPool

CASES = (
    Case("block param", dp=2, block="param", method="pcgrad", flags=SMALL_BUCKETS),
    Case("a bad language", dp=2, slots=2, objectives=4, method="cagrad", poison=(1,), flags=OVERLAP),
    Case("overlap, small buckets", dp=2, method="cagrad", flags=SMALL_BUCKETS),
    Case("no overlap, 2 slots", dp=2, slots=2, objectives=4, method="mgda"),
    Case("tp 2, sp", dp=2, tp=2, method="cagrad", flags=(*SEQUENCE, *OVERLAP)),
    Case("2 instances, bf16", dp=4, method="mean", wire="bf16", tolerance=4e-3, flags=TWO_INSTANCES),
    Case("two stages, bf16", dp=4, method="mean", exchange="hierarchical", together=True, wire="bf16",
         tolerance=4e-3, flags=OVERLAP),
)  # fmt: skip


def beside_worker(rank: int, world: int, case: Case) -> dict[str, Any]:
    """A step with a stream that only notes what happens on it."""
    from megatron_moo.buckets import exchange, step

    log: list[str] = []

    class Noting:
        exists = True

        def __init__(self, device: Any) -> None: ...

        @contextmanager
        def behind(self) -> Any:
            log.append("begin")
            yield
            log.append("end")

        def join(self) -> None:
            log.append("join")

    exchange.SideStream = Noting  # type: ignore[misc,assignment]
    step.MooStep._at_once = lambda self, plan: True  # type: ignore[method-assign]
    arrived, resolve = step.MooStep.arrived, step.MooStep.resolve

    def noted_arrival(self: Any, plan: Any, received: Any) -> bool:
        log.append("arrived")
        return arrived(self, plan, received)

    def noted_resolve(self: Any) -> Any:
        log.append("resolve")
        return resolve(self)

    step.MooStep.arrived, step.MooStep.resolve = noted_arrival, noted_resolve  # type: ignore[method-assign]
    return {**train_steps(case), "log": log}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_update_is_the_same(pool: RankPool, case: Case) -> None:
    ranks = pool.run(beside_worker, case.world, case)
    reference = pool.run(reference_worker, 1, case)[0]
    assert max(errors(ranks, reference).values()) <= case.tolerance
    for rank in ranks:
        buckets = rank["log"].count("begin") // case.slots
        bucket = ["begin", "arrived", "end", *([] if "--overlap-grad-reduce" in case.flags else ["join"])]
        a_pass = [*bucket * buckets, "join"]
        assert rank["log"] == [*a_pass * case.slots, "resolve"], (
            "rows arrive on the stream, the step joins it first"
        )
