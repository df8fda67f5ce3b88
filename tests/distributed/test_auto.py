"""``--moo-block auto`` at every layout: the same groups, and their update."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_moo.buckets.adaptive import AdaptiveBlocks
from megatron_moo.moo import make_method
from tests.distributed.assemble import errors, gramian_error
from tests.distributed.case import Case
from tests.distributed.matrix import OVERLAP, SEQUENCE, SMALL_BUCKETS, UNTIED
from tests.distributed.ranks import layout_worker, reference_worker
from tests.distributed.test_modes import STILL
from tests.pool import RankPool

AUTO = {"block": "auto", "auto_every": 3, "method": "cagrad", "objectives": 4, "slots": 2, "layers": 3}
CASES = (
    Case("dp 2", dp=2, flags=(*SMALL_BUCKETS, *STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
    Case("tp 2, sp", dp=2, tp=2, flags=(*SEQUENCE, *OVERLAP, *STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
    Case("one process", dp=1, flags=(*STILL, *UNTIED), **{**AUTO, "slots": 4}),  # type: ignore[arg-type]
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_groups_and_update(pool: RankPool, case: Case) -> None:
    """Three steps, a decision, and the update of the fourth under the groups that were decided."""
    ranks = pool.run(layout_worker, case.world, case, steps=4)
    groups = ranks[0]["state"]["auto"]["groups"]
    assert all(rank["state"]["auto"]["groups"] == groups for rank in ranks)
    reference = pool.run(reference_worker, 1, case, step=3)[0]
    assert gramian_error(ranks, reference) <= 1e-5
    start = AdaptiveBlocks(reference["blocks"], case.objectives, 3, torch.device("cpu"))
    before = [[reference["blocks"][index] for index in group] for group in start.groups]
    assert groups != before, "a decision that changes nothing shows nothing"
    start.load_state_dict({**ranks[0]["state"]["auto"], "groups": groups})
    together = start.together(reference["gramians"])
    weights = start.apart(make_method("cagrad")(together, block=start.names, step=3))
    grouped = pool.run(reference_worker, 1, case, step=3, weights=weights)[0]
    assert max(errors(ranks, grouped).values()) <= 1e-5


def test_every_layout_decides_the_same(pool: RankPool) -> None:
    found = [
        pool.run(layout_worker, case.world, case, steps=3)[0]["state"]["auto"]["groups"] for case in CASES
    ]
    assert found[0] == found[1] == found[2]


def test_it_resumes(pool: RankPool) -> None:
    case = CASES[0]
    whole = pool.run(layout_worker, 2, case, steps=4)
    half = pool.run(layout_worker, 2, case, steps=2)
    rest = pool.run(layout_worker, 2, case, steps=2, first=2, state=half[0]["state"])
    assert rest[0]["state"]["auto"]["groups"] == whole[0]["state"]["auto"]["groups"]
    assert torch.equal(rest[0]["weights"][-1], whole[0]["weights"][-1])


def test_strength_zero_is_the_mean(pool: RankPool) -> None:
    case = Case("ramp", dp=2, method="mgda", strength=(0.0, 1.0, 2), flags=STILL)
    first = pool.run(layout_worker, 2, case)
    mean = pool.run(reference_worker, 1, dataclasses.replace(case, method="mean"))[0]
    assert max(errors(first, mean).values()) <= 1e-5
