"""Against scipy, and against counting by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from megatron_moo.experiment.statistics import (
    contrast,
    holm,
    interval,
    mean_interval,
    sign_flip,
    smallest_p,
)


def _differences(count: int, seed: int, shift: float = 0.3) -> list[float]:
    return list(np.random.default_rng(seed).normal(shift, 1.0, count))


@pytest.mark.parametrize(("count", "seed"), [(3, 0), (5, 1), (8, 2), (10, 3)])
def test_sign_flip_is_scipys_exact_permutation_test(count: int, seed: int) -> None:
    d = _differences(count, seed)
    scipy = stats.permutation_test(
        (np.array(d), np.zeros(count)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
    )  # fmt: skip
    assert sign_flip(d) == pytest.approx(scipy.pvalue, abs=1e-12)


def test_smallest_p_of_five_and_ten_pairs() -> None:
    assert sign_flip([-1.0, -2.0, -3.0, -1.5, -0.5]) == pytest.approx(2 / 32)
    assert sign_flip([1.0 + i for i in range(10)]) == pytest.approx(2 / 1024)
    assert sign_flip([0.0, 0.0]) == 1.0


def test_twenty_pairs_are_counted_exactly() -> None:
    """p of differences 1..20 with small ones turned: counted by dynamic programming over whole numbers."""
    values, turned = range(1, 21), {1, 2, 3, 5, 8, 9}
    d = [-value if value in turned else value for value in values]
    ways = {0: 1}
    for value in values:
        more: dict[int, int] = {}
        for total, count in ways.items():
            for sign in (-1, 1):
                more[total + sign * value] = more.get(total + sign * value, 0) + count
        ways = more
    exact = sum(count for total, count in ways.items() if abs(total) >= abs(sum(d))) / 2**20
    assert sign_flip([float(value) for value in d]) == exact
    found = contrast(dict(enumerate(map(float, d))), dict.fromkeys(range(20), 0.0))
    assert found.exact and found.p == exact and (found.low > 0) == (exact < 0.05)
    assert sign_flip([1.0 + i for i in range(20)]) == smallest_p(20) == 2 / 2**20


def test_more_pairs_than_are_counted_say_so() -> None:
    one = dict(enumerate(_differences(30, 4, shift=0.6)))
    found = contrast(one, dict.fromkeys(one, 0.0))
    assert not found.exact and 0 < found.p < 0.05 < found.low + 0.5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_diverged_run_is_refused(bad: float) -> None:
    one = {seed: 1.0 + seed for seed in range(8)}
    with pytest.raises(ValueError, match="not finite"):
        contrast({**one, 3: bad}, dict.fromkeys(one, 0.5))
    with pytest.raises(ValueError, match="not finite"):
        sign_flip([1.0, bad])
    with pytest.raises(ValueError, match="not finite"):
        interval([1.0, bad])


@pytest.mark.parametrize("count", [6, 8, 10])
def test_interval_holds_the_shifts_that_the_test_does_not_reject(count: int) -> None:
    d = _differences(count, count)
    low, high = interval(d)
    span = high - low
    for shift, inside in (
        (low - 1e-6 * span, False), (low + 1e-6 * span, True), (high - 1e-6 * span, True), (high + 1e-6 * span, False)
    ):  # fmt: skip
        p = sign_flip([value - shift for value in d])
        assert (p > 0.05) == inside, (shift, p)


def test_interval_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    held = 0
    for _ in range(400):
        low, high = interval(list(random.normal(0.7, 1.0, 7)))
        held += low <= 0.7 <= high
    assert 0.91 <= held / 400 <= 0.985


def test_five_pairs_have_no_interval_at_95() -> None:
    assert interval([1.0, 2.0, 3.0, 4.0, 5.0]) == (float("-inf"), float("inf"))


def test_contrast_uses_common_seeds_only() -> None:
    found = contrast({1: 1.0, 2: 3.0, 9: 100.0}, {1: 0.5, 2: 1.5, 3: -50.0})
    assert (found.mean, found.pairs) == (1.0, 2)
    with pytest.raises(ValueError, match="no seed"):
        contrast({1: 1.0}, {2: 1.0})


def test_holm_by_hand() -> None:
    # Sorted: .01 * 4, .02 * 3, then .03 * 2 and .04 * 1 that may not fall.
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02})
    assert found == pytest.approx({"a": 0.06, "b": 0.04, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}
    # Five were planned: .01 * 5, .02 * 4, .03 * 3, .04 * 2; what is not finished counts as p = 1 behind them.
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.02}, family=5)
    assert found == pytest.approx({"a": 0.09, "b": 0.05, "c": 0.09, "d": 0.08})


def test_mean_interval_is_scipys() -> None:
    v = _differences(7, 6)
    mean, half = mean_interval(v)
    low, high = stats.t.interval(0.95, 6, loc=np.mean(v), scale=stats.sem(v))
    assert (mean - half, mean + half) == pytest.approx((low, high))
