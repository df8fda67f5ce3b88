"""The pieces that plots are made of, against properties and brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from megatron_moo.report.charts import palette, scale
from megatron_moo.report.charts.binning import bins
from megatron_moo.report.charts.frame import json_script, spread
from megatron_moo.report.charts.heat import Colours, ordered_colours, signed_colours


@pytest.mark.parametrize("seed", range(20))
def test_spread_keeps_order_gap_and_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    places = list(rng.uniform(0, 300, size=rng.integers(1, 30)))
    moved = spread(places, 14.0, 300.0)
    gap = min(14.0, 300.0 / max(1, len(places) - 1))
    order = np.argsort(places, kind="stable")
    steps = np.diff(np.array(moved)[order])
    assert (steps >= gap - 1e-6).all()
    assert min(moved) >= -1e-6
    assert max(moved) <= 300 + 1e-6


def test_spread_moves_as_little_as_possible() -> None:
    places, gap = [10.0, 12.0, 40.0], 14.0
    grid = np.arange(0, 60.1, 0.5)
    best = min(
        (c for c in itertools.product(grid, repeat=3) if c[1] - c[0] >= gap and c[2] - c[1] >= gap),
        key=lambda c: sum((a - b) ** 2 for a, b in zip(c, places, strict=True)),
    )
    np.testing.assert_allclose(spread(places, gap, 60.0), best, atol=0.5)
    assert spread([10.0, 50.0], gap, 60.0) == [10.0, 50.0]


@pytest.mark.parametrize("values", [[0.0], [3.0, 3.0], [1e-9, 2e-9], [-5.0, 5.0], [1e12, 1.1e12], [math.nan]])
def test_linear_axis_holds_its_values_and_ticks(values: list[float]) -> None:
    axis = scale.linear(np.array(values))
    places = axis.share(np.array(values))
    assert ((places >= 0) & (places <= 1))[np.isfinite(values)].all()
    assert 1 <= len(axis.ticks) <= 12
    assert all(axis.low <= tick <= axis.high for tick in axis.ticks)


def test_log_axis_is_used_only_where_values_span_enough() -> None:
    assert scale.logarithmic(np.array([0.01, 1.0])).log
    assert not scale.logarithmic(np.array([0.5, 1.0])).log
    assert not scale.logarithmic(np.array([0.0, 0.0])).log
    axis = scale.logarithmic(np.array([0.01, 1.0, 0.0, math.nan]))
    assert axis.place(0.1) == pytest.approx((axis.place(0.01) + axis.place(1.0)) / 2)
    assert math.isnan(axis.place(0.0))


@pytest.mark.parametrize("steps", [[5], [1, 2], [0, 3], [1, 60], [100, 100_000]])
def test_step_axis_has_whole_steps(steps: list[int]) -> None:
    axis = scale.steps(np.array(steps, dtype=np.float64))
    assert axis.ticks
    assert all(tick == int(tick) for tick in axis.ticks)
    assert all(0 <= axis.place(step) <= 1 for step in steps)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2.5, "2.5"), (-0.05, "−0.05"), (12000, "12,000"), (3e-4, "3e−4"), (2e6, "2e6")],
)
def test_tick_text(value: float, text: str) -> None:
    assert scale.tick_text(value) == text


def test_bins_average_what_is_finite() -> None:
    values = np.array([1.0, math.nan, 3.0, math.inf, math.nan, 7.0, 9.0])
    np.testing.assert_array_equal(bins(7, 4).mean(values), [1.0, 3.0, 7.0, 9.0])
    np.testing.assert_array_equal(bins(7, 7).mean(values)[:3], [1.0, math.nan, 3.0])
    assert bins(7, 4).note() == "Each point is the mean of 2 steps."
    assert bins(0, 4).mean(np.zeros(0)).shape == (0,)


def test_colours_clip_and_are_symmetric() -> None:
    colours = signed_colours(np.array([0.31, -0.05]))
    assert (colours.low, colours.high) == (-0.5, 0.5)
    assert colours.level(0.0) == palette.DIVERGING // 2
    assert colours.level(-9.0) == 0
    assert colours.level(9.0) == palette.DIVERGING - 1
    assert ordered_colours("o", np.array([0.03]), least=0.5).high == 0.5
    assert ordered_colours("b", np.array([0.23])).high == pytest.approx(0.3)
    assert Colours("b", 0.0, 1.0).level(1.0) == palette.SEQUENTIAL - 1


def test_categories_repeat_only_after_all_hues_and_dashes() -> None:
    count = palette.CATEGORIES * palette.DASHES
    assert len({palette.category(i) for i in range(count)}) == count


@pytest.mark.parametrize("dark", [False, True])
def test_lines_stand_out_from_the_page(dark: bool) -> None:
    """WCAG 1.4.11: three to one for graphics, against the card that they are drawn on."""
    card = "#1b1e23" if dark else "#ffffff"
    variables = dict(pair.split(":") for pair in palette.variables(dark).rstrip(";").split(";"))
    for name, colour in variables.items():
        if name.startswith(("--c", "--p")):
            assert contrast(colour, card) >= 3.0, name


def contrast(one: str, other: str) -> float:
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_json_cannot_leave_its_script() -> None:
    text = str(json_script({"n": "</script><!--&\u2028"}))
    assert text.count("<") == 2  # the element's own two tags
    assert "\u2028" not in text
