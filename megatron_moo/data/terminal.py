"""Progress of a build: a live bar on a terminal, sparse plain lines when piped."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

_PLAIN_SECONDS = 10.0


class Bar:
    """``update`` fits ``build_corpus(progress=...)``; writes to stderr."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._tasks: dict[tuple[str, str], int] = {}
        self._last = time.monotonic()

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console, transient=True)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, tag: str, split: str, done: int, total: int) -> None:
        """Bytes read so far of one language and split."""
        if self._bar is not None:
            key = (tag, split)
            if key not in self._tasks:
                self._tasks[key] = self._bar.add_task(f"{tag} {split}", total=total)
            self._bar.update(self._tasks[key], completed=done)  # type: ignore[arg-type]
        elif time.monotonic() - self._last > _PLAIN_SECONDS:
            self._last = time.monotonic()
            self._console.print(f"{tag} {split}: {done / 1e6:.1f} of {total / 1e6:.1f} MB", highlight=False)
