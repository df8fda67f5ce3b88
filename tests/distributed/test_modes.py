"""Measuring without touching the update, and weights that serve for several steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.distributed.assemble import errors, gramian_error, whole_update
from tests.distributed.case import Case
from tests.distributed.matrix import MOE, OVERLAP, PER_MICRO_BATCH, SEQUENCE, SMALL_BUCKETS
from tests.distributed.ranks import layout_worker, reference_worker
from tests.distributed.test_megatron import losses_of
from tests.pool import RankPool

OBSERVED = (
    Case("dp 2", dp=2, observe=True, method="cagrad", flags=SMALL_BUCKETS),
    Case("dp 2, 2 slots", dp=2, slots=2, micro_batches=2, objectives=4, observe=True, method="cagrad"),
    Case("one process, 3 slots", dp=1, slots=3, objectives=3, observe=True, method="mgda"),
    Case("tp 2, sp", dp=2, tp=2, observe=True, method="cagrad", flags=(*SEQUENCE, *OVERLAP)),
    Case(
        "tp 2, sp, 3 slots", dp=2, tp=2, slots=3, objectives=6, observe=True, method="cagrad", flags=SEQUENCE
    ),
    Case("pp 2, tied", dp=2, pp=2, observe=True, method="cagrad", flags=OVERLAP),
    Case("mean per micro-batch", dp=2, observe=True, method="cagrad", flags=PER_MICRO_BATCH),
)


@pytest.mark.parametrize("case", OBSERVED, ids=lambda case: case.name)
def test_observing_changes_nothing(pool: RankPool, case: Case) -> None:
    """Losses and parameters are bitwise plain Megatron's, and the Gramians are those of the single process."""
    watched = pool.run(layout_worker, case.world, case, steps=4)
    plain = pool.run(layout_worker, case.world, case, steps=4, plain=True)
    assert losses_of(watched) == losses_of(plain)
    for one, other in zip(watched, plain, strict=True):
        for name, value in one["params"].items():
            assert torch.equal(value, other["params"][name]), name
    first = pool.run(layout_worker, case.world, case, steps=1)
    assert gramian_error(first, pool.run(reference_worker, 1, case)[0]) <= 1e-5


STILL = ("--lr", "1e-12", "--min-lr", "0")  # parameters that stay, so that one reference serves every step
AMORTISED = (
    Case("dp 2", dp=2, every=2, method="cagrad", flags=(*SMALL_BUCKETS, *STILL)),
    Case("dp 2, 2 slots", dp=2, slots=2, objectives=4, every=2, method="mgda", flags=STILL),
    Case("dp 2, 2 slots, per micro-batch", dp=2, slots=2, objectives=3, micro_batches=2, every=2,
         method="cagrad", flags=(*PER_MICRO_BATCH, *STILL)),
    Case("tp 2, sp", dp=2, tp=2, every=2, method="cagrad", flags=(*SEQUENCE, *OVERLAP, *STILL)),
    Case("pp 2, tied", dp=2, pp=2, micro_batches=2, every=2, method="cagrad", flags=(*OVERLAP, *STILL)),
    Case("cp 2", dp=2, cp=2, every=2, method="mgda", flags=STILL),
    Case("moe, ep 2", dp=4, ep=2, every=2, method="cagrad", flags=(*MOE, *STILL)),
)  # fmt: skip


@pytest.mark.parametrize("case", AMORTISED, ids=lambda case: case.name)
def test_cached_weights_serve_the_next_step(pool: RankPool, case: Case) -> None:
    """The second step's update is that step's rows under the first step's weights."""
    solved = pool.run(reference_worker, 1, case)[0]
    reference = pool.run(reference_worker, 1, case, step=1, weights=solved["weights"])[0]
    ranks = pool.run(layout_worker, case.world, case, steps=2)
    assert max(errors(ranks, reference).values()) <= 1e-5
    fresh = pool.run(reference_worker, 1, case, step=1)[0]
    assert (fresh["weights"] - solved["weights"]).abs().max() > 1e-2, (
        "the weights must differ to be told apart"
    )


DROPOUT = ("--attention-dropout", "0.2", "--hidden-dropout", "0.2")
REPEATED = (
    Case("dp 2, 3 slots", dp=2, slots=3, objectives=3, method="cagrad", flags=SMALL_BUCKETS),
    Case("dropout", dp=2, slots=3, objectives=6, micro_batches=2, method="mgda", flags=DROPOUT),
    Case(
        "dropout, tp 2, sp", dp=1, tp=2, slots=3, objectives=3, method="cagrad", flags=(*SEQUENCE, *DROPOUT)
    ),
    Case("every 2", dp=2, slots=3, objectives=3, every=2, method="cagrad"),
    Case("a bad language", dp=2, slots=3, objectives=3, method="cagrad", poison=(1,), poison_from=1),
    Case("a bad position", dp=2, slots=3, objectives=6, method="mgda", poison=(5,), flags=SMALL_BUCKETS),
)


@pytest.mark.parametrize("case", REPEATED, ids=lambda case: case.name)
def test_repeated_passes_are_the_same_training(pool: RankPool, case: Case) -> None:
    """Losses of the first step are bitwise those with kept rows, everything after it within rounding."""
    kept = pool.run(layout_worker, case.world, case, steps=3)
    again = pool.run(layout_worker, case.world, replace(case, recompute=1), steps=3)
    assert losses_of(again)[0] == losses_of(kept)[0]
    torch.testing.assert_close(losses_of(again), losses_of(kept), rtol=1e-4, atol=0)
    for one, other in zip(again, kept, strict=True):
        torch.testing.assert_close(one["gramians"][0], other["gramians"][0], rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(one["same"], other["same"], rtol=1e-3, atol=1e-12, equal_nan=True)
        assert one["dropped"] == other["dropped"]
        for name, value in one["params"].items():
            torch.testing.assert_close(value, other["params"][name], rtol=0, atol=2e-4, msg=name)


ADAM = (
    Case("dp 2", dp=2, method="cagrad", metric="adam", flags=(*SMALL_BUCKETS, *STILL)),
    Case(
        "dp 2, 3 slots, recompute",
        dp=2,
        slots=3,
        objectives=6,
        recompute=1,
        method="mgda",
        metric="adam",
        flags=STILL,
    ),
    Case("tp 2, sp", dp=2, tp=2, method="cagrad", metric="adam", flags=(*SEQUENCE, *OVERLAP, *STILL)),
    Case("pp 2, tied", dp=2, pp=2, micro_batches=2, method="cagrad", metric="adam", flags=(*OVERLAP, *STILL)),
    Case("moe, ep 2", dp=4, ep=2, method="mgda", metric="adam", flags=(*MOE, *STILL)),
)


@pytest.mark.parametrize("case", ADAM, ids=lambda case: case.name)
def test_gramians_in_the_metric_of_adam(pool: RankPool, case: Case) -> None:
    """After one step v, corrected for its start, is that step's update squared; the second step measures with it."""
    first = pool.run(layout_worker, case.world, case, steps=1)
    before = whole_update(first)
    metric = {name: torch.where(d != 0, 1.0 / (d.abs() + 1e-8), 0.0) for name, d in before.items()}
    plain = pool.run(reference_worker, 1, case)[0]
    assert gramian_error(first, plain) <= 1e-5, "before the first step the metric is 1"
    reference = pool.run(reference_worker, 1, case, step=1, metric=metric)[0]
    second = pool.run(layout_worker, case.world, case, steps=2)
    assert gramian_error(second, reference) <= 1e-5
    assert max(errors(second, reference).values()) <= 1e-5
    euclidean = pool.run(reference_worker, 1, case, step=1)[0]
    assert (euclidean["weights"] - reference["weights"]).abs().max() > 1e-2, (
        "the metric must matter to be seen"
    )


def test_an_exclusion_that_excludes_nothing_is_refused(pool: RankPool) -> None:
    with pytest.raises(
        AssertionError, match="--moo-exclude: 'nrom' is found in no parameter; names are like"
    ):
        pool.run(layout_worker, 2, Case("exclude", dp=2, exclude="nrom"))
