"""Ten bad steps of one objective in a row end a run; of several in turn, or with good ones between, they do not."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.buckets.drops import DropWatch
from megatron_moo.errors import MooError


def steps(pattern: list[str], absent: list[str] | None = None) -> int:
    """How many steps a run of objectives a and b takes; a pattern names the bad ones, ``absent`` those not there."""
    watch = DropWatch(("a", "b"))
    absent = absent or [""] * len(pattern)
    for number, (bad, gone) in enumerate(zip(pattern, absent, strict=True), 1):
        dropped = torch.tensor([name in bad for name in watch.objectives])
        counts = torch.tensor(
            [0.0 if name in gone else 5.0 for name in watch.objectives], dtype=torch.float64
        )
        try:
            watch.count(number, dropped, counts)
        except MooError:
            return number
    return len(pattern)


def test_ten_in_a_row_end_the_run() -> None:
    assert steps(["a"] * 30) == 10
    assert steps(["ab"] * 30) == 10
    assert steps(["b"] * 9 + [""] + ["b"] * 30) == 20


def test_objectives_that_take_turns_do_not() -> None:
    assert steps(["a", "b"] * 20) == 40


@pytest.mark.parametrize("every", [2, 3])
def test_steps_without_the_objective_do_not_count(every: int) -> None:
    """Bad whenever it is there: ten times in a row, however far apart."""
    there = [number % every == 0 for number in range(60)]
    assert (
        steps(["a" if now else "" for now in there], ["" if now else "a" for now in there]) == 9 * every + 1
    )
