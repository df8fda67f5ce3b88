"""What this process is in right now, for the message of a run that got stuck: collectives do not name themselves."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Doing:
    """One for every process: :data:`DOING`. Written by the thread that trains, read by the watchdog.

    Attributes:
        step: of the run, counted from 1 as in the metrics; 0 before the first.
        language: the objective that this rank computes.
        what: the collective or phase.
        bucket: that the collective moves, or "".
        since: when it began, in seconds of ``time.monotonic()``.
    """

    step: int = 0
    language: str = ""
    what: str = "starting"
    bucket: str = ""
    since: float = field(default_factory=time.monotonic)

    def enter(self, what: str, bucket: str = "") -> None:
        """Say what begins."""
        self.what, self.bucket, self.since = what, bucket, time.monotonic()

    def leave(self) -> None:
        """Say that it is over."""
        self.enter("computing")

    def line(self) -> str:
        """``step 7, language ko, all-to-all of bucket 0.2``."""
        parts = [
            f"step {self.step}" if self.step else "",
            f"language {self.language}" if self.language else "",
        ]
        parts += [f"{self.what} of bucket {self.bucket}" if self.bucket else self.what]
        return ", ".join(part for part in parts if part)


DOING = Doing()
