"""Axes: from data to ticks and to places in percent."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from megatron_moo.report.records import Array

PADDING = 0.04  # of the range, above and below the data


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis over ``[low, high]``."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def share(self, values: Array) -> Array:
        """Places between 0 (low) and 1 (high); NaN stays NaN."""
        if self.log:
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = np.where(values > 0, np.log(values), np.nan)
            return (logs - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (values - self.low) / (self.high - self.low)

    def place(self, value: float) -> float:
        """Place of one value."""
        return float(self.share(np.array([value], dtype=np.float64))[0])


def linear(values: Array, *, zero: bool = False, wanted: int = 5) -> Scale:
    """An axis over the finite ``values`` with round ticks; ``zero`` makes it start or end at zero."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        half = abs(low) / 2 or 0.5
        low, high = (0.0, high * 1.2 or 1.0) if zero and high >= 0 else (low - half, high + half)
    pad = PADDING * (high - low)
    low = low if zero and low == 0 else low - pad
    high = high if zero and high == 0 else high + pad
    return Scale(low, high, round_ticks(low, high, wanted))


def logarithmic(values: Array) -> Scale:
    """A log axis over the positive ``values``, or a linear one when they span less than a factor of four."""
    positive = values[np.isfinite(values) & (values > 0)]
    if not positive.size or positive.max() / positive.min() < 4:
        return linear(values, zero=True)
    low, high = float(positive.min()) / 1.1, float(positive.max()) * 1.1
    ticks = _log_ticks(low, high)
    return Scale(low, high, ticks, log=True)


def steps(values: Array, wanted: int = 6) -> Scale:
    """An axis of whole steps without padding."""
    low, high = (math.floor(values.min()), math.ceil(values.max())) if values.size else (0, 1)
    if high <= low:
        return cells(low, high, wanted)
    ticks = tuple(tick for tick in round_ticks(low, high, wanted) if tick == round(tick))
    return Scale(float(low), float(high), ticks)


def cells(first: float, last: float, wanted: int = 6) -> Scale:
    """An axis of steps for cells that reach half a step to either side."""
    low, high = first - 0.5, last + 0.5
    return Scale(low, high, tuple(tick for tick in round_ticks(low, high, wanted) if tick == round(tick)))


def round_ticks(low: float, high: float, wanted: int) -> tuple[float, ...]:
    """About ``wanted`` multiples of 1, 2 or 5 times a power of ten inside the range."""
    rough = (high - low) / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    unit = min((m * power for m in (1, 2, 5, 10)), key=lambda unit: abs(math.log(unit / rough)))
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return tuple(round(index * unit, 12) for index in range(first, last + 1))


def _log_ticks(low: float, high: float) -> tuple[float, ...]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    every = max(1, len(decades) // 7)
    ticks = (factor * 10.0**decade for decade in decades if decade % every == 0 for factor in factors)
    return tuple(tick for tick in ticks if low <= tick <= high)


def tick_text(value: float) -> str:
    """A tick's label: short, with a true minus."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    text = f"{value:,.6f}".rstrip("0").rstrip(".")
    return text.replace("-", "−")
