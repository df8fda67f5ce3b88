"""A process in which Triton interprets: it has to be told before Triton is imported, so not in this one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pytest

# Kernels meet NaN and Inf on purpose, at which numpy warns.
_ENVIRONMENT = {
    "TRITON_INTERPRET": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore::RuntimeWarning",
}


@pytest.fixture(scope="session")
def _interpreter() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        with pytest.MonkeyPatch.context() as patch:  # for the start of that process, not for other tests
            for name, value in _ENVIRONMENT.items():
                patch.setenv(name, value)
            assert process.submit(os.getenv, "TRITON_INTERPRET").result(timeout=60) == "1"
        yield process


@pytest.fixture
def interpreted(
    _interpreter: ProcessPoolExecutor, record_property: Callable[[str, object], None]
) -> Callable[..., Any]:
    """``interpreted(function, *args)`` runs a module's function where Triton kernels run on CPU tensors.

    What the function returns is the error it measured, kept for the page (``page.py``).
    """

    def run(function: Callable[..., Any], *args: Any) -> Any:
        error = _interpreter.submit(function, *args).result(timeout=240)
        if error is not None:
            record_property("error", error)
        return error

    return run
