"""Make the next part of a checkpoint while the last one is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

# Both parts together; larger ones are made one after the other, so that memory stays bounded by the largest tensor.
_BYTES = 256 << 20


class Ahead[T]:
    """Results of functions that are asked for in order, each but the large ones made a step early in a thread.

    No two of them run at once, so they may share files.

    Args:
        makes: the functions.
        sizes: bytes of their results.
    """

    def __init__(self, makes: Sequence[Callable[[], T]], sizes: Sequence[int]) -> None:
        self._makes, self._sizes = makes, sizes
        self._thread = ThreadPoolExecutor(1)
        self._pending: dict[int, Future[T]] = {}

    def __enter__(self) -> Ahead[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def get(self, i: int) -> T:
        """Result of function ``i``; raises what it raised."""
        for early in [j for j in self._pending if j != i]:
            self._pending.pop(early).result()  # asked for out of order: let it end before another one runs
        future = self._pending.pop(i, None)
        found = self._makes[i]() if future is None else future.result()
        if i + 1 < len(self._makes) and self._sizes[i] + self._sizes[i + 1] <= _BYTES:
            self._pending[i + 1] = self._thread.submit(self._makes[i + 1])
        return found
