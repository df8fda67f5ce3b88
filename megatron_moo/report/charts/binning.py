"""Fewer points for long runs: means over equal stretches of steps."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np

from megatron_moo.report.records import Array


@dataclass(frozen=True)
class Bins:
    """Stretches of ``width`` records each (the last may be shorter); ``width`` 1 changes nothing."""

    count: int  # records
    width: int

    @property
    def starts(self) -> range:
        """Index of the first record of each stretch."""
        return range(0, self.count, self.width)

    def mean(self, values: Array) -> Array:
        """Mean over each stretch of axis 0, leaving out what is not finite; NaN where nothing is left."""
        values = np.asarray(values, dtype=np.float64)
        if self.width == 1:
            return np.where(np.isfinite(values), values, np.nan)
        kept = np.where(np.isfinite(values), values, np.nan)
        with warnings.catch_warnings():  # numpy warns about a mean of nothing; NaN is what we want then
            warnings.simplefilter("ignore", category=RuntimeWarning)
            return np.array([np.nanmean(kept[i : i + self.width], axis=0) for i in self.starts])

    def note(self) -> str:
        """What a point is, in words."""
        return "One point a step." if self.width == 1 else f"Each point is the mean of {self.width} steps."


def bins(count: int, most: int) -> Bins:
    """Bins that leave at most ``most`` points of ``count`` records."""
    return Bins(count, max(1, math.ceil(count / most)))
