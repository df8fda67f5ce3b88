"""Where a step's time goes, and the stream on which a GPU exchanges rows beside the backward pass.

On a GPU the exchange, the parking of rows and their Gramians run on a stream of their own: it waits for the gradient of
the bucket, the backward pass does not wait for it, and the two meet at the end of the pass. The host never waits. On a
CPU the collective runs in the background and the rest in the caller's thread.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

NAMES = ("exchange", "gramian", "solve", "combine")
_BESIDE, _JOIN = "beside", "join"


class Phases:
    """Seconds of a step by phase; on a GPU taken from events, which nothing waits for until they are read.

    ``exchange``, ``gramian``, ``solve`` and ``combine`` are what the step waited for; ``hidden`` is what ran meanwhile:
    on a GPU what ran beside the backward pass, less the wait for it.

    Args:
        device: where the rows are.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []
        self._beside = False

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of a block for a phase."""
        if self._on_gpu:
            began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            began.record()
            yield
            ended.record()
            self._events.append((_BESIDE if self._beside else name, began, ended))
            return
        started = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - started

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Whatever is counted in this block runs beside the backward pass (on a GPU)."""
        self._beside = True
        try:
            yield
        finally:
            self._beside = False

    def join(self) -> contextlib.AbstractContextManager[None]:
        """Count the time of a block, in which the step waits for what ran beside, for ``exchange``."""
        return self(_JOIN)

    def hide(self, seconds: float) -> None:
        """Count time during which an exchange was under way and the backward pass went on (on a CPU)."""
        self._seconds["hidden"] += seconds

    def read(self) -> dict[str, float]:
        """Seconds by phase; on a GPU this waits for the events."""
        while self._events:
            name, began, ended = self._events.pop()
            ended.synchronize()
            self._seconds[name] += began.elapsed_time(ended) / 1e3
        joined = self._seconds[_JOIN]
        hidden = max(0.0, self._seconds[_BESIDE] - joined) if self._on_gpu else self._seconds["hidden"]
        found = {name: self._seconds[name] for name in NAMES}
        return {**found, "exchange": found["exchange"] + joined, "hidden": hidden}


class SideStream:
    """A stream beside the one that computes; on a CPU there is none.

    Tensors that are made on it may be used by the other stream after :meth:`join`: it begins everything by waiting
    for that stream, so that memory which comes back to it is no longer in use.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def exists(self) -> bool:
        return self._stream is not None

    @contextlib.contextmanager
    def behind(self) -> Iterator[None]:
        """Run a block on the stream, after what the current stream was given so far."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let the current stream wait for everything that was given to this one."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
