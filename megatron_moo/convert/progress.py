"""A progress bar over bytes, silent where nobody looks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
    """Yield a function that is told how many more bytes are done."""
    with tqdm(
        total=total, desc=what, unit="B", unit_scale=True, disable=not sys.stderr.isatty(), leave=False
    ) as bar:
        yield lambda count: (bar.update(count), None)[1]
