"""A sudden rise of one language's loss, seen in the step in which it happens."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median, pstdev
from typing import Any

# Both must hold, so that neither a loss near zero nor a noisy one raises an alarm: three times the median of what the
# language had lately, and six standard deviations above its mean.
_FACTOR, _SIGMAS = 3.0, 6.0
_WINDOW, _LEAST = 128, 8
# Or this alone: six times the median of the last eight. A loss that falls has a wide window, whose deviation hides a
# tenfold loss, and a run that begins has none.
_SHARP, _RECENT, _FEW = 6.0, 8, 3


class SpikeWatch:
    """Remembers the last losses of every language.

    A loss that was flagged is not remembered, so that the next one is flagged too; after eight in a row that is where
    the run is, and what it is measured by. A checkpoint carries it (:meth:`state_dict`).
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
        usual = _usual(known, loss)
        if usual is None:
            known.append(loss)
            flagged.clear()
            return None
        flagged.append(loss)
        if len(flagged) >= _LEAST:
            known.clear()
            known.extend(flagged)
            flagged.clear()
        return loss / usual if usual > 0 else math.inf

    def state_dict(self) -> dict[str, Any]:
        """``{"losses": {tag: [oldest, …]}, "flagged": …}``: plain numbers."""
        return {
            "losses": {tag: list(known) for tag, known in self._losses.items()},
            "flagged": {tag: list(flagged) for tag, flagged in self._flagged.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`."""
        self._losses = {tag: deque(known, maxlen=_WINDOW) for tag, known in state["losses"].items()}
        self._flagged = {tag: list(flagged) for tag, flagged in state["flagged"].items()}


def _usual(known: Sequence[float], loss: float) -> float | None:
    """The median that ``loss`` is far above, or None where it is not."""
    if len(known) >= _FEW and loss > _SHARP * (recent := median(list(known)[-_RECENT:])):
        return recent
    if len(known) < _LEAST or loss <= _FACTOR * (middle := median(known)):
        return None
    return middle if loss > fmean(known) + _SIGMAS * pstdev(known) else None
