"""An outside judge: one step of a Hugging Face Llama by transformers, torch.autograd and our solver."""

from __future__ import annotations

import pytest

from tests.distributed.assemble import errors, gramian_error
from tests.distributed.case import Case
from tests.distributed.llama import GROUPS, llama_worker
from tests.distributed.matrix import OVERLAP, SEQUENCE, UNTIED
from tests.distributed.ranks import layout_worker
from tests.pool import RankPool

LLAMA = (*UNTIED, "--group-query-attention", "--num-query-groups", str(GROUPS))
CASES = (
    Case("dp 2, 2 slots", dp=2, slots=2, objectives=3, method="cagrad", weights="transformers", flags=LLAMA),
    Case("tp 2, pp 2, dp 2", dp=2, tp=2, pp=2, method="mgda", weights="transformers",
         flags=(*LLAMA, *SEQUENCE, *OVERLAP)),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_step_of_a_llama_equals_transformers(pool: RankPool, case: Case) -> None:
    reference = pool.run(llama_worker, 1, case)[0]
    ranks = pool.run(layout_worker, case.world, case)
    assert max(errors(ranks, reference).values()) <= 1e-5
    assert gramian_error(ranks, reference) <= 1e-5
