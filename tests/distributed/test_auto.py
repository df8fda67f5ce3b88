"""``--moo-block auto`` at every layout: the same groups, and their update."""

from __future__ import annotations

import dataclasses
from typing import Any

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

# Random data of one step, at every step: what three steps show is then no noise. In the data of this one the languages
# agree in both layers (on different pipeline stages), and are in conflict in the output layer, not in the last norm.
AUTO = {"block": "auto", "auto_every": 3, "method": "cagrad", "data_of": 431}
CASES = (
    Case("dp 2", dp=2, flags=(*SMALL_BUCKETS, *STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
    Case("tp 2, sp", dp=2, tp=2, flags=(*SEQUENCE, *OVERLAP, *STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
    Case("pp 2", dp=2, pp=2, flags=(*OVERLAP, *STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
    Case("cp 2", dp=2, cp=2, flags=(*STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
    Case("one process", slots=2, flags=(*STILL, *UNTIED), **AUTO),  # type: ignore[arg-type]
)
LAYERS = [f"decoder.layers.{layer}.{part}" for layer in (0, 1) for part in ("attention", "mlp", "norms")]
GROUPS = [LAYERS, ["embedding"], ["final_norm"], ["head"]]


@pytest.fixture(scope="module")
def reference(pool: RankPool) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fourth step of a single process, and its update under the weights of ``GROUPS``."""
    case = CASES[0]
    found = pool.run(reference_worker, 1, case, step=3)[0]
    blocks = AdaptiveBlocks(found["blocks"], case.objectives, 3, torch.device("cpu"))
    blocks.load_state_dict({**blocks.state_dict(), "groups": GROUPS})
    together = blocks.together(found["gramians"])
    weights = blocks.apart(make_method("cagrad")(together, block=blocks.names, step=3))
    return found, pool.run(reference_worker, 1, case, step=3, weights=weights)[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_groups_and_update(
    pool: RankPool, reference: tuple[dict[str, Any], dict[str, Any]], case: Case
) -> None:
    """Three steps, the decision of every layout, and the update of the fourth under the groups that were decided."""
    ranks = pool.run(layout_worker, case.world, case, steps=4)
    assert all(rank["state"]["auto"]["groups"] == GROUPS for rank in ranks)
    assert gramian_error(ranks, reference[0]) <= 1e-5
    assert max(errors(ranks, reference[1]).values()) <= 1e-5
    assert max(errors(ranks, reference[0]).values()) > 1e-3, "layers of their own would do something else"


def test_it_decides_between_steps_that_are_not_solved(pool: RankPool) -> None:
    """Solved are steps 0, 2, 4 and 6, of which none is a fourth step."""
    case = dataclasses.replace(CASES[0], every=2, auto_every=4)
    early = pool.run(layout_worker, 2, case, steps=6)[0]["state"]
    late = pool.run(layout_worker, 2, case, steps=2, first=6, state=early)
    assert early["auto"]["groups"] != GROUPS
    assert all(rank["state"]["auto"]["groups"] == GROUPS for rank in late)


def test_it_resumes(pool: RankPool) -> None:
    case = CASES[0]
    whole = pool.run(layout_worker, 2, case, steps=4)
    half = pool.run(layout_worker, 2, case, steps=2)
    rest = pool.run(layout_worker, 2, case, steps=2, first=2, state=half[0]["state"])
    one, other = rest[0]["state"]["auto"], whole[0]["state"]["auto"]
    assert one["groups"] == other["groups"] == GROUPS
    assert (one["counted"], one["decided"]) == (other["counted"], other["decided"]) == (1, 1)
    assert torch.equal(one["parts"], other["parts"])
    assert torch.equal(rest[0]["weights"][-1], whole[0]["weights"][-1])


def test_strength_zero_is_the_mean(pool: RankPool) -> None:
    case = Case("ramp", dp=2, method="mgda", strength=(0.0, 1.0, 2), flags=STILL)
    first = pool.run(layout_worker, 2, case)
    mean = pool.run(reference_worker, 1, dataclasses.replace(case, method="mean"))[0]
    assert max(errors(first, mean).values()) <= 1e-5
