"""Which of the two forms of a kernel runs: Triton's on a GPU, the torch twin everywhere else."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def on_triton(tensor: torch.Tensor) -> bool:
    """Whether the Triton kernel runs for data on this tensor's device."""
    return tensor.is_cuda and _has_triton()
