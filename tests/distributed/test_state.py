"""What a step remembers: the same keys on every rank, and a continuation that is bitwise the uninterrupted run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_moo.moo import METHODS
from tests.distributed.case import Case
from tests.distributed.matrix import OVERLAP, SMALL_BUCKETS
from tests.distributed.ranks import layout_worker
from tests.distributed.test_modes import STILL
from tests.pool import RankPool

STATEFUL = [name for name in ("gradvac", "crmogm", "ema:cagrad", "famo") if name.split(":")[-1] in METHODS]


@pytest.mark.parametrize("method", [*STATEFUL, "pcgrad", "random"])
def test_methods_go_on_bitwise(pool: RankPool, method: str) -> None:
    if method.split(":")[-1] not in METHODS:
        pytest.fail(f"{method} is missing from METHODS")
    case = Case(method, dp=2, slots=2, objectives=3, method=method, flags=STILL)
    whole = pool.run(layout_worker, 2, case, steps=4)
    half = pool.run(layout_worker, 2, case, steps=2)
    assert half[0]["state"].keys() == half[1]["state"].keys()
    rest = pool.run(layout_worker, 2, case, steps=2, first=2, state=half[0]["state"])
    for one, other in zip(whole[0]["weights"][2:], rest[0]["weights"], strict=True):
        assert torch.equal(one, other)


def test_cached_weights_go_on(pool: RankPool) -> None:
    case = Case("every 3", dp=2, method="cagrad", every=3, flags=STILL)
    whole = pool.run(layout_worker, 2, case, steps=3)
    half = pool.run(layout_worker, 2, case, steps=1)
    # The next solve is due at step 3: without the cache step 1 would solve again.
    rest = pool.run(layout_worker, 2, case, steps=2, first=1, state=half[0]["state"])
    for one, other in zip(whole[0]["weights"], rest[0]["weights"], strict=False):
        assert torch.equal(one, other)
    for one, other in zip(whole[0]["grads"], rest[0]["grads"], strict=True):
        torch.testing.assert_close(one["values"], other["values"], rtol=0, atol=0)


def test_buckets_do_not_move_to_another_layout(pool: RankPool) -> None:
    """Other buckets hold other parameters: weights and state by bucket name would mean something else."""
    case = Case("buckets", dp=2, method="cagrad", block="bucket", flags=SMALL_BUCKETS)
    state = pool.run(layout_worker, 2, case)[0]["state"]
    pool.run(layout_worker, 2, case, first=1, state=state)
    other = dataclasses.replace(case, flags=(*OVERLAP, "--ddp-bucket-size", "9000"))
    with pytest.raises(
        AssertionError, match="--moo-block bucket: the checkpoint's blocks hold other parameters"
    ):
        pool.run(layout_worker, 2, other, first=1, state=state)
