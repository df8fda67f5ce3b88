"""Which objectives were left out of steps, and when that has gone on for too long."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_moo.errors import MooError

IN_A_ROW = 10


class DropWatch:
    """Stops a run in which an objective was bad too often in a row, steps without it apart.

    Attributes:
        drops: bad steps in a row, objective by objective; replaced at every step, so that a rerun can go back.

    Args:
        objectives: their names.
    """

    def __init__(self, objectives: Sequence[str]) -> None:
        self.objectives = tuple(objectives)
        self.drops = [0] * len(self.objectives)
        self._unread: torch.Tensor | None = None

    def count(self, step: int, dropped: torch.Tensor, counts: torch.Tensor) -> None:
        """Count a step; on a GPU the one before, so that nothing waits for the answer.

        Args:
            step: for the message.
            dropped: ``[K]`` bool, objectives with a non-finite row.
            counts: ``[K]``, tokens of every objective.

        Raises:
            MooError: after :data:`IN_A_ROW` bad steps of one objective.
        """
        seen = torch.stack([dropped, counts > 0])
        if seen.is_cuda:
            last, self._unread = self._unread, seen
            if last is None:
                return
            seen = last
        gone, there = seen.tolist()
        self.drops = [
            drops + 1 if bad else 0 if present else drops
            for drops, bad, present in zip(self.drops, gone, there, strict=True)
        ]
        names = [name for name, drops in zip(self.objectives, self.drops, strict=True) if drops >= IN_A_ROW]
        if names:
            raise MooError(
                f"the gradient of {', '.join(names)} was not finite for {IN_A_ROW} steps in a row",
                f"step {step}",
                "lower the learning rate or look at the data of that language",
            )
