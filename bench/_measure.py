"""What the benchmarks measure: paired ratios, bytes handed to collectives, memory of tensors."""

from __future__ import annotations

import ctypes
import functools
import gc
import statistics
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, ClassVar

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")

# With these every large tensor is a mapping of its own and goes back to the system when it dies, so that the
# resident set follows the tensors (by default glibc keeps up to 64 MB of freed memory).
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def paired(mine: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Median of the ratios of pairs and its 95 % interval (order statistics)."""
    ratios = sorted(a / b for a, b in zip(mine, base, strict=True))
    n = len(ratios)
    reach = 1.96 * sqrt(n) / 2
    low, high = ratios[max(0, int(n / 2 - reach))], ratios[min(n - 1, int(n / 2 + reach))]
    return statistics.median(ratios), low, high


class ByteCounter:
    """Counts what a rank hands to collectives, as bytes that a ring would send.

    All-to-all and reduce-scatter send (D-1)/D of their input, an all-reduce twice that.
    """

    FACTORS: ClassVar[dict[str, float]] = {
        "all_to_all_single": 1.0,
        "reduce_scatter_tensor": 1.0,
        "all_reduce": 2.0,
    }

    def __init__(self) -> None:
        import torch.distributed as dist

        self.sent = dict.fromkeys(self.FACTORS, 0.0)
        for name, factor in self.FACTORS.items():
            setattr(dist, name, self._counting(name, factor, getattr(dist, name)))

    def _counting(self, name: str, factor: float, call: Callable[..., Any]) -> Callable[..., Any]:
        import torch.distributed as dist

        @functools.wraps(call)
        def counted(*args: Any, **kw: Any) -> Any:
            place = 0 if name == "all_reduce" else 1
            tensor = args[place] if len(args) > place else kw["input" if place else "tensor"]
            size = dist.get_world_size(kw.get("group"))
            self.sent[name] += factor * tensor.numel() * tensor.element_size() * (size - 1) / size
            return call(*args, **kw)

        return counted

    def take(self) -> dict[str, float]:
        """Bytes since the last call, by collective."""
        taken, self.sent = self.sent, dict.fromkeys(self.FACTORS, 0.0)
        return taken


def memory_of(step: Callable[[], None], steps: int = 3) -> tuple[float, float]:
    """Memory of tensors in MB: at rest between steps, and at the peak of a step.

    At rest it is counted from the storages of all live tensors. The peak adds the rise of the resident set
    during steps over its level at rest, from the kernel's own high-water mark: libraries, code and caches are
    in both readings and cancel. Run it in a process with the environment :data:`MALLOC` that has warmed up.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    at_rest = live_bytes() / 1e6
    before = _kilobytes("VmRSS")
    _CLEAR.write_text("5")  # the high-water mark starts again from here
    for _ in range(steps):
        step()
    return at_rest, at_rest + (_kilobytes("VmHWM") - before) * 1024 / 1e6


def live_bytes() -> int:
    """Bytes in the storages of all tensors that Python can reach."""
    import torch

    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _kilobytes(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key + ":"))
    return int(line.split()[1])
