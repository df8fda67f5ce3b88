"""Lanes are the connected components of ranks that must see the same data."""

from __future__ import annotations

import pytest

from megatron_moo.buckets.gramians import twins
from megatron_moo.buckets.lanes import connect


@pytest.mark.parametrize(
    ("groups", "world", "lanes"),
    [
        ([], 4, [0, 1, 2, 3]),
        ([(0, 1), (2, 3)], 4, [0, 0, 1, 1]),
        # TP pairs and expert pairs across them: four ranks a lane.
        ([(0, 1), (2, 3), (4, 5), (6, 7), (0, 2), (1, 3), (4, 6), (5, 7)], 8, [0] * 4 + [1] * 4),
        # Pipeline stages far apart in rank order.
        ([(0, 4), (1, 5), (2, 6), (3, 7)], 8, [0, 1, 2, 3, 0, 1, 2, 3]),
        ([(3, 0), (2, 1)], 4, [0, 1, 1, 0]),
    ],
)
def test_connect(groups: list[tuple[int, ...]], world: int, lanes: list[int]) -> None:
    assert connect(groups, world) == lanes


def test_twins_are_the_first_two_places_of_an_objective() -> None:
    assert twins([[0, 1], [2, 0], [0, 2]]) == [(0, (0, 0), (1, 1)), (2, (1, 0), (2, 1))]
    assert twins([[0, 1], [2, 3]]) == []
