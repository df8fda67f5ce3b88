"""Small index tensors that steps need again and again, kept on the device: to make one anew, the host waits."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from megatron_moo.kernels.segments import on_device


@lru_cache(maxsize=4096)
def constant(values: tuple[Any, ...], device: torch.device, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    """A tensor of these (nested) values; shared, so nobody may write to it."""
    return on_device(torch.tensor(values, dtype=dtype), device)
