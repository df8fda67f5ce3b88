"""A sudden rise of one language's loss, seen in the step in which it happens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median, pstdev

# Both must hold, so that neither a loss near zero nor a noisy one raises an alarm: three times the median of what the
# language had lately (a tenfold loss is far beyond it), and six standard deviations above its mean.
_FACTOR, _SIGMAS = 3.0, 6.0
_WINDOW, _LEAST = 128, 8


class SpikeWatch:
    """Remembers the last losses of every language.

    A loss that was flagged is not remembered, so that the next one is flagged too; after eight in a row that is where
    the run is, and what it is measured by.
    """

    def __init__(self) -> None:
        self._losses: dict[str, deque[float]] = {}
        self._flagged: dict[str, list[float]] = {}

    def look(self, losses: Mapping[str, float]) -> dict[str, float]:
        """Take the losses of a step.

        Args:
            losses: mean loss per language, of those that were in the step.

        Returns:
            how many times its median each flagged loss is.
        """
        return {
            tag: factor for tag, loss in losses.items() if (factor := self._factor(tag, loss)) is not None
        }

    def _factor(self, tag: str, loss: float) -> float | None:
        known = self._losses.setdefault(tag, deque(maxlen=_WINDOW))
        flagged = self._flagged.setdefault(tag, [])
        if not math.isfinite(loss):
            return None  # left out of the step, and told of there
        middle = median(known) if len(known) >= _LEAST else math.inf
        if loss <= _FACTOR * middle or loss <= fmean(known) + _SIGMAS * pstdev(known):
            known.append(loss)
            flagged.clear()
            return None
        flagged.append(loss)
        if len(flagged) >= _LEAST:
            known.clear()
            known.extend(flagged)
            flagged.clear()
        return loss / middle if middle > 0 else math.inf
