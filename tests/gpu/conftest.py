"""The kernels' tests, with a real GPU in the interpreter's place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def interpreted() -> Callable[..., Any]:
    """``interpreted(check, "cpu", *args)`` runs the check on the GPU."""
    return lambda check, _device, *args: check("cuda", *args)
