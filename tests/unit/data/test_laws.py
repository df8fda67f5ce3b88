"""Sampling laws against hand-made numbers."""

from __future__ import annotations

import pytest

from megatron_moo.data.laws import law_shares, position_shares, unimax
from megatron_moo.data.manifest import SamplingSpec
from megatron_moo.errors import MooError

SIZES = {"en": 800, "de": 150, "fr": 50}
ONES = dict.fromkeys(SIZES, 1.0)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SamplingSpec("uniform"), (1 / 3, 1 / 3, 1 / 3)),
        (SamplingSpec("proportional"), (0.8, 0.15, 0.05)),
        (SamplingSpec("temperature", temperature=1.0), (0.8, 0.15, 0.05)),
        # Roots 28.2843, 12.2474, 7.0711; sum 47.6028.
        (SamplingSpec("temperature", temperature=2.0), (0.594173, 0.257285, 0.148542)),
        # 600 tokens: fr may give 50 * 2 = 100 (under a third), de 150 * 2 = 300 (cap over its half of 500),
        # en the rest.
        (SamplingSpec("unimax", epochs=2, budget=600), (250 / 600, 250 / 600, 100 / 600)),
        # 3,000 tokens: every cap binds, so all is used twice.
        (SamplingSpec("unimax", epochs=2, budget=3000), (0.8, 0.15, 0.05)),
    ],
)
def test_shares(spec: SamplingSpec, expected: tuple[float, ...]) -> None:
    shares = law_shares(spec, SIZES, ONES)
    assert tuple(shares.values()) == pytest.approx(expected, abs=2e-6)


def test_weights_multiply_and_fixed_is_the_weights_alone() -> None:
    weights = {"en": 1.0, "de": 2.0, "fr": 1.0}
    assert law_shares(SamplingSpec("fixed"), SIZES, weights) == pytest.approx(
        {"en": 0.25, "de": 0.5, "fr": 0.25}
    )
    assert law_shares(SamplingSpec("proportional"), SIZES, weights)["de"] == pytest.approx(0.3 / 1.15)


def test_unimax_never_exceeds_the_cap_nor_the_budget() -> None:
    given = unimax(SIZES, 900, 1.0)
    assert sum(given.values()) == pytest.approx(900)
    assert all(given[tag] <= SIZES[tag] for tag in SIZES)


def test_positions_make_up_for_short_samples() -> None:
    positions = position_shares({"en": 0.5, "de": 0.5}, {"en": 100.0, "de": 10.0})
    assert positions == pytest.approx({"en": 1 / 11, "de": 10 / 11})


def test_bad_input() -> None:
    with pytest.raises(MooError, match="'fr' is empty"):
        law_shares(SamplingSpec("uniform"), {**SIZES, "fr": 0}, ONES)
    with pytest.raises(MooError, match="unknown sampling law"):
        law_shares(SamplingSpec("magic"), SIZES, ONES)
    with pytest.raises(MooError, match="UniMax needs"):
        law_shares(SamplingSpec("unimax"), SIZES, ONES)


def test_weights_under_unimax_never_lift_the_cap() -> None:
    sizes, weights = {"a": 1000, "b": 100, "c": 10}, {"a": 1.0, "b": 1.0, "c": 50.0}
    for budget in (100, 500, 900, 5000):
        given = unimax(sizes, budget, 2.0, weights)
        assert sum(given.values()) <= budget * (1 + 1e-12)
        assert all(given[tag] <= 2.0 * sizes[tag] for tag in sizes)
        shares = law_shares(SamplingSpec("unimax", epochs=2.0, budget=budget), sizes, weights)
        assert all(shares[tag] * sum(given.values()) <= 2.0 * sizes[tag] * (1 + 1e-12) for tag in sizes)
    # Below every cap the weights decide.
    assert unimax(sizes, 5.2, 2.0, weights) == pytest.approx({"a": 0.1, "b": 0.1, "c": 5.0})
    assert unimax(sizes, 900, 2.0, dict.fromkeys(sizes, 7.0)) == pytest.approx(unimax(sizes, 900, 2.0))
