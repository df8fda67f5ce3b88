"""How numbers are written, the same in the terminal and on the page."""

from __future__ import annotations

import math

ABSENT = "–"


def loss(value: float) -> str:
    """Nats per token or bits per byte: three decimals."""
    return f"{value:.3f}" if math.isfinite(value) else not_finite(value)


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign and a true minus."""
    if not math.isfinite(value):
        return not_finite(value)
    return f"{value:+.{digits}f}".replace("-", "−")


def percent(value: float, digits: int = 0) -> str:
    """A share as percent."""
    return f"{100 * value:.{digits}f} %" if math.isfinite(value) else not_finite(value)


def count(value: float) -> str:
    """A whole number with thin groups: 12,345 or 1.23 M."""
    if not math.isfinite(value):
        return not_finite(value)
    for size, letter in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:,.0f}"


def seconds(value: float) -> str:
    """A duration: 380 ms, 2.91 s, 4:05, 3:12:45."""
    if not math.isfinite(value):
        return not_finite(value)
    if value < 1:
        return f"{1000 * value:.3g} ms"
    if value < 60:
        return f"{value:.3g} s"
    return clock(value)


def clock(value: float) -> str:
    """m:ss or h:mm:ss."""
    if not math.isfinite(value):
        return "-:--"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def significant(value: float, digits: int = 3) -> str:
    """A number of any size in a few digits."""
    return f"{value:.{digits}g}".replace("-", "−") if math.isfinite(value) else not_finite(value)


def not_finite(value: float) -> str:
    """NaN stands for "not measured" and reads as a dash; an infinity is shown."""
    if math.isnan(value):
        return ABSENT
    return "∞" if value > 0 else "−∞"
