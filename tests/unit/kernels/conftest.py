"""A process in which Triton interprets: it has to be told before Triton is imported, so not in this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Callable[..., Any]]:
    """``interpreted(function, *args)`` runs a module's function where Triton kernels run on CPU tensors."""
    with pytest.MonkeyPatch.context() as patch, ProcessPoolExecutor(1, get_context("spawn")) as process:
        patch.setenv("TRITON_INTERPRET", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        # Kernels meet NaN and Inf on purpose, at which numpy warns.
        patch.setenv("PYTHONWARNINGS", "ignore::RuntimeWarning")
        yield lambda function, *args: process.submit(function, *args).result(timeout=240)
