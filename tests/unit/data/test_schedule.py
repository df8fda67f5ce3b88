"""LaneSchedule: presence, fairness, shares, purity."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_moo.data import LaneSchedule
from megatron_moo.errors import MooError


@pytest.mark.parametrize("presence", ["present", "law"])
@pytest.mark.parametrize("shares", [None, [0.6, 0.3, 0.1]])
def test_four_slots_two_by_two_and_one_by_four_are_the_same_run(
    presence: str, shares: list[float] | None
) -> None:
    runs = [LaneSchedule(3, d, s, 7, presence, shares) for d, s in ((1, 4), (2, 2), (4, 1))]
    for step in (0, 1, 2, 1000, 999_999):
        flat = [[k for slot in run.assignment(step) for k in slot] for run in runs]
        assert flat[0] == flat[1] == flat[2]
        assert [len(run.assignment(step)) for run in runs] == [4, 2, 1]


@given(k=st.integers(1, 12), lanes=st.integers(1, 6), slots=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_present_uniform_never_differs_by_more_than_one(k: int, lanes: int, slots: int, seed: int) -> None:
    schedule = LaneSchedule(k, lanes, slots, seed)
    counts = Counter(dict.fromkeys(range(k), 0))
    for step in range(60):
        flat = schedule.flat(step)
        assert len(flat) == lanes * slots
        if k <= lanes * slots:
            assert set(flat) == set(range(k)), "every objective in every step"
        else:
            assert len(set(flat)) == len(flat), "no objective twice in a step"
        counts.update(flat)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_rotation_lets_every_pair_meet() -> None:
    schedule = LaneSchedule(6, 2, 1)
    pairs = {tuple(sorted(schedule.flat(step))) for step in range(300)}
    assert len(pairs) == 15


def test_law_presence_follows_the_shares_and_lets_a_rare_one_sit_out() -> None:
    shares = np.array([0.5, 0.3, 0.17, 0.03])
    schedule = LaneSchedule(4, 2, 2, 3, "law", shares.tolist())
    flats = [schedule.flat(step) for step in range(20_000)]
    counts = np.bincount(np.concatenate(flats), minlength=4) / (4 * 20_000)
    np.testing.assert_allclose(counts, shares, rtol=0.01)
    assert any(3 not in flat for flat in flats)


def test_law_presence_is_close_already_early() -> None:
    shares = np.array([0.5, 0.3, 0.2])
    schedule = LaneSchedule(3, 1, 1, 3, "law", shares.tolist())
    drawn = np.eye(3)[[schedule.flat(step)[0] for step in range(1500)]].cumsum(0)
    behind = np.abs(drawn - shares * np.arange(1, 1501)[:, None]).max()
    assert behind < 4, "independent draws would be off by about 20 (one sigma at the end)"


def test_present_with_shares_gives_the_law_where_one_per_step_allows_it() -> None:
    # L = 4, K = 2: the law wants 2.8 and 1.2 positions; both are above one, so the law is met exactly in the
    # long run.
    schedule = LaneSchedule(2, 4, 1, 0, "present", [0.7, 0.3])
    counts = np.bincount(np.concatenate([schedule.flat(s) for s in range(10_000)])) / 40_000
    np.testing.assert_allclose(counts, [0.7, 0.3], rtol=0.01)
    np.testing.assert_allclose(schedule.expected_shares(), [0.7, 0.3])


def test_present_raises_a_small_share_to_one_position_and_keeps_the_proportions_of_the_others() -> None:
    schedule = LaneSchedule(3, 8, 1, 0, "present", [0.6, 0.39, 0.01])
    counts = np.bincount(np.concatenate([schedule.flat(s) for s in range(10_000)])) / 80_000
    assert counts[2] == pytest.approx(1 / 8)
    assert counts[0] / counts[1] == pytest.approx(0.6 / 0.39, rel=0.01)
    np.testing.assert_allclose(counts, schedule.expected_shares(), rtol=0.01)


def test_pure_function_of_the_step() -> None:
    make = lambda: LaneSchedule(7, 2, 2, 5, "law", [1, 2, 3, 4, 5, 6, 7])  # noqa: E731
    forwards = [make().flat(step) for step in range(50)]
    one = make()
    assert forwards == [one.flat(step) for step in reversed(range(50))][::-1]
    assert any(a != b for a, b in pairwise(forwards))


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"objectives": 0, "lanes": 1}, "at least 1"),
        ({"objectives": 2, "lanes": 1, "presence": "sometimes"}, "sometimes"),
        ({"objectives": 2, "lanes": 1, "shares": [1.0]}, "1 shares for 2"),
        ({"objectives": 2, "lanes": 1, "shares": [1.0, -1.0]}, "shares must be"),
        ({"objectives": 2, "lanes": 1, "shares": [1.0, float("nan")]}, "shares must be"),
    ],
)
def test_bad_input_is_named(kwargs: dict, words: str) -> None:
    with pytest.raises(MooError, match=words):
        LaneSchedule(**kwargs)


def test_groups_of_lanes_compute_one_objective() -> None:
    """14 objectives on 64 lanes: 16 groups of 4, every objective in every step, the extra places in turn."""
    schedule = LaneSchedule(14, 64, 1, 3, group=4)
    counts = np.zeros(14, int)
    for step in range(70):
        (row,) = schedule.assignment(step)
        assert len(row) == 64 and set(row) == set(range(14))
        assert all(len(set(row[start : start + 4])) == 1 for start in range(0, 64, 4))
        counts += np.bincount(row, minlength=14)
    assert counts.max() - counts.min() <= 4
    assert schedule.fingerprint() != LaneSchedule(14, 64, 1, 3).fingerprint()
    one, other = (LaneSchedule(3, d, s, 7, group=2) for d, s in ((8, 1), (4, 2)))
    assert one.flat(5) == other.flat(5)
    assert sum(schedule.expected_shares()) == pytest.approx(1.0)
