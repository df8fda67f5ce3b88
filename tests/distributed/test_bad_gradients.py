"""A language whose gradient is not finite is left out of the step; when all are, nothing moves."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from megatron_moo.moo import METHODS, make_method
from tests.distributed.assemble import errors
from tests.distributed.case import Case
from tests.distributed.matrix import OVERLAP, SEQUENCE
from tests.distributed.ranks import layout_worker, reference_worker
from tests.distributed.test_modes import STILL
from tests.faults.record import record
from tests.pool import RankPool

CASES = (
    *(Case(method, dp=2, slots=2, objectives=4, method=method, poison=(2,))
      for method in ("mean", "sum", "mgda", "cagrad", "pcgrad")),
    Case("+inf", dp=2, slots=2, objectives=4, method="cagrad", poison=(1,), poison_with=float("inf")),
    Case("-inf, tp 2, sp", dp=2, tp=2, slots=2, objectives=4, method="cagrad", poison=(0,), poison_with=float("-inf"),
         flags=(*SEQUENCE, *OVERLAP)),
    Case("two of four", dp=4, objectives=4, method="mgda", poison=(0, 3), flags=OVERLAP),
)  # fmt: skip

_TESTED = {case.method for case in CASES}
# Every other method that training takes; those that weigh by losses have no single-process reference.
_OTHERS = tuple(
    name
    for name, spec in METHODS.items()
    if "cross" not in (*spec.needs, *spec.takes) and name not in _TESTED
)
BY_LOSSES = tuple(name for name in _OTHERS if "losses" in METHODS[name].needs)
MORE = tuple(
    Case(name, dp=2, slots=2, objectives=4, method="ema:cagrad" if name == "ema" else name, poison=(2,),
         poison_with=value)
    for name in (*_OTHERS, "mean", "sum", "mgda", "pcgrad") if name not in BY_LOSSES
    for value in (float("nan"), float("inf"), float("-inf")) if name in _OTHERS or value == value
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_update_is_the_one_without_it(pool: RankPool, case: Case) -> None:
    ranks = pool.run(layout_worker, case.world, case)
    reference = pool.run(reference_worker, 1, case)[0]
    assert max(errors(ranks, reference).values()) <= 1e-6
    assert ranks[0]["dropped"] == [k in case.poison for k in range(case.objectives)]
    check_parameters(ranks, case)


def check_parameters(ranks: list[dict[str, Any]], case: Case) -> None:
    """Every parameter is finite, and the bad languages have weight 0 in every block."""
    for rank in ranks:
        assert all(torch.isfinite(value).all() for value in rank["params"].values())
        assert all(float(rank["weights"][-1][:, k].abs().max()) == 0.0 for k in case.poison)
    record(10, f"{named(case)}: the update is the one without the bad language", 1)


def named(case: Case) -> str:
    """Method, what sets the case apart, and the bad value: ``mgda, two of four, nan``."""
    words = (*case.name.split(", "), f"{case.poison_with:+}".replace("+nan", "nan"))
    return ", ".join((case.method, *(w for w in dict.fromkeys(words) if w not in case.method.split(":"))))


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=lambda case: f"{case.name}, {case.poison_with}")
def test_the_update_is_the_one_without_it_for_every_other_method(pool: RankPool, case: Case) -> None:
    test_the_update_is_the_one_without_it(pool, case)


@pytest.mark.parametrize("method", BY_LOSSES)
def test_methods_that_weigh_by_losses_leave_it_out_and_take_it_back(pool: RankPool, method: str) -> None:
    """(A loss that is not finite: ``tests/unit/moo/test_bad_losses.py``.)"""
    case = Case(method, dp=2, slots=2, objectives=4, method=method, poison=(2,), poison_until=2)
    ranks = pool.run(layout_worker, 2, case, steps=4)
    for rank in ranks:
        assert all(torch.isfinite(value).all() for value in rank["params"].values())
        assert all(torch.isfinite(weights).all() for weights in rank["weights"])
        bad = [float(weights[:, 2].abs().max()) for weights in rank["weights"]]
        assert bad[:2] == [0.0, 0.0] and min(bad[2:]) > 0
        assert all(float(weights[:, k].abs().min()) > 0 for weights in rank["weights"] for k in (0, 1, 3))
    for step, alone in enumerate(weights_without(ranks[0], case, 2)):
        torch.testing.assert_close(ranks[0]["weights"][step], alone, rtol=1e-9, atol=1e-12)
    record(10, f"{method}: the bad language is left out and comes back", 1)


def weights_without(rank: dict[str, Any], case: Case, steps: int) -> list[torch.Tensor]:
    """What a method of its own gives in each step, told of the sound objectives only: their Gramians and losses.

    Returns:
        ``[B, K]`` each, 0 for the bad objectives.
    """
    method = make_method(case.method, **case.options)
    sound = [k for k in range(case.objectives) if k not in case.poison]
    found = []
    for step in range(steps):
        weights = torch.zeros_like(rank["weights"][step])
        weights[:, sound] = method(
            rank["gramians"][step][:, sound][:, :, sound],
            losses=rank["objective_losses"][step][sound],
            step=step,
            block=rank["blocks"],
        )
        found.append(weights)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("method", BY_LOSSES)
def test_by_losses_the_update_is_the_one_of_a_run_without_it(
    pool: RankPool, method: str, value: float
) -> None:
    """A sound step first; the same losses to a run of K - 1, and its weights to K - 1 backward passes."""
    case = Case(method, dp=2, slots=2, objectives=4, method=method, poison=(2,), poison_with=value, poison_from=1,
                flags=STILL)  # fmt: skip
    ranks = pool.run(layout_worker, 2, case, steps=3)
    alone = weights_without(ranks[0], case, 3)
    for step in (1, 2):
        torch.testing.assert_close(ranks[0]["weights"][step], alone[step], rtol=1e-9, atol=1e-12)
    assert float((alone[2] - alone[1]).abs().max()) > 1e-6, "the losses weigh"
    reference = pool.run(reference_worker, 1, case, step=2, weights=alone[2])[0]
    assert max(errors(ranks, reference).values()) <= 1e-5
    check_parameters(ranks, case)


def test_nothing_moves_when_no_gradient_is_finite(pool: RankPool) -> None:
    """Parameters and Adam's moments, which a sound step has filled, are bit-identical on all ranks."""
    case = Case("all bad", dp=2, method="cagrad", flags=(*OVERLAP, "--weight-decay", "0.1"))
    sound = pool.run(layout_worker, 2, case, steps=1)
    bad = pool.run(layout_worker, 2, dataclasses.replace(case, poison=(0, 1), poison_from=1), steps=2)
    for before, after in zip(sound, bad, strict=True):
        assert before["moved"] > 1e-4 and all(float(moment.abs().max()) > 0 for moment in before["adam"])
        assert all(torch.equal(value, after["params"][name]) for name, value in before["params"].items())
        assert all(torch.equal(a, b) for a, b in zip(before["adam"], after["adam"], strict=True))
    record(10, "all languages bad: parameters and Adam's moments bit-identical on all ranks", 1)


def test_ten_steps_in_a_row_stop_the_run(pool: RankPool) -> None:
    case = Case("stuck", dp=2, method="cagrad", poison=(1,))
    pool.run(layout_worker, 2, case, steps=9)
    with pytest.raises(
        AssertionError, match="the gradient of language1 was not finite for 10 steps in a row"
    ):
        pool.run(layout_worker, 2, case, steps=10)
    record(10, "ten bad steps in a row end the run", 1)


def test_between_solves_too(pool: RankPool) -> None:
    """With cached weights a language that turns bad is left out of the reduction."""
    case = Case(
        "every 2",
        dp=2,
        slots=2,
        objectives=4,
        every=2,
        method="cagrad",
        poison=(2,),
        poison_from=1,
        flags=STILL,
    )
    solved = pool.run(reference_worker, 1, dataclasses.replace(case, poison=()))[0]
    reference = pool.run(reference_worker, 1, case, step=1, weights=solved["weights"])[0]
    ranks = pool.run(layout_worker, 2, case, steps=2)
    assert max(errors(ranks, reference).values()) <= 1e-5
    assert ranks[0]["dropped"] == [False, False, True, False]
