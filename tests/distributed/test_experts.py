"""An expert that a language did not reach contributes no row: Refined Pareto Stationarity where sparsity is real."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.moo import make_method
from tests.distributed.assemble import errors, gramian_error
from tests.distributed.case import STILL, Case
from tests.distributed.ranks import layout_worker, reference_worker
from tests.pool import RankPool

SPARSE = (
    "--num-experts", "16", "--moe-router-topk", "1", "--moe-router-pre-softmax", "--moe-ffn-hidden-size", "24",
    "--moe-token-dispatcher-type", "alltoall", "--moe-router-load-balancing-type", "none",
)  # fmt: skip
CASES = tuple(
    Case(method, dp=4, ep=2, objectives=2, method=method, block="param", flags=SPARSE)
    for method in ("mgda", "cagrad", "pcgrad", "upgrad")
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_unreached_expert_has_no_row(pool: RankPool, case: Case) -> None:
    """The update of such a block is what the method makes of the rows that are there, not the zero that freezes it."""
    ranks = pool.run(layout_worker, case.world, case)
    reference = pool.run(reference_worker, 1, case)[0]
    assert gramian_error(ranks, reference) <= 1e-5
    assert max(errors(ranks, reference).values()) <= 1e-5
    gramians, weights = ranks[0]["gramians"][0], ranks[0]["weights"][0]
    reached = gramians.diagonal(dim1=-2, dim2=-1) > 0
    one_only = [b for b, name in enumerate(ranks[0]["blocks"]) if reached[b].sum() == 1]
    assert len(one_only) >= 4, "the batch must leave experts unreached by one of the two languages"
    assert all("local_experts" in ranks[0]["blocks"][b] for b in one_only)
    for b in one_only:
        k = int(reached[b].int().argmax())
        alone = make_method(case.method)(gramians[b : b + 1, k : k + 1, k : k + 1], block=["one"], step=0)
        torch.testing.assert_close(weights[b, k], alone[0, 0].to(weights), rtol=1e-9, atol=0)
        assert float(weights[b, k]) > 0.1, "the language that is there must move its expert"


@pytest.mark.parametrize("method", ["mgda", "token"])
def test_an_expert_that_is_reached_between_solves_moves(pool: RankPool, method: str) -> None:
    """``--moo-every``: a row that the solve did not see has the plain mean's weight, or the method's own."""
    case = Case(
        method, dp=4, ep=2, objectives=2, method=method, block="param", every=2, flags=(*SPARSE, *STILL)
    )
    solved = pool.run(reference_worker, 1, case)[0]
    absent = solved["gramians"].diagonal(dim1=-2, dim2=-1) == 0
    neutral = torch.full_like(solved["weights"], 0.5)
    if method == "token":  # n_k / N, which does not ask who is there
        neutral = solved["weights"][~absent.any(-1)][0].expand_as(neutral)
    lasting = torch.where(absent, neutral, solved["weights"])
    fresh = pool.run(reference_worker, 1, case, step=1)[0]
    new = absent & (fresh["gramians"].diagonal(dim1=-2, dim2=-1) > 0)
    assert int(new.sum()) >= 4, "the second step must reach experts that the first left out"
    reference = pool.run(reference_worker, 1, case, step=1, weights=lasting)[0]
    ranks = pool.run(layout_worker, case.world, case, steps=2)
    assert max(errors(ranks, reference).values()) <= 1e-5
    torch.testing.assert_close(ranks[0]["weights"][1], lasting, rtol=1e-5, atol=1e-7)
