"""What Megatron-Core needs of CUDA, faked for a machine without a GPU.

Megatron-Core 0.19.2 trains on the CPU with gloo once the calls below answer. Nothing here is imported on a machine
with a GPU: :mod:`megatron_moo.training.platform` does not, and :func:`install` refuses there.

The fake is small on purpose: a stream and an event that do nothing (a CPU runs in order), a device that is the CPU,
memory counters that read the process, and a CUDA random state that is the CPU's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import resource
from types import SimpleNamespace
from typing import Any

import torch

_INSTALLED = False
_CPU = torch.device("cpu")
_FACTORIES = (
    "tensor", "zeros", "ones", "empty", "full", "rand", "randn", "randint", "arange", "linspace", "eye",
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "as_tensor", "scalar_tensor",
    "empty_strided", "randperm", "tril_indices", "triu_indices",
)  # fmt: skip


class CpuStream:
    """A stream of a machine that runs everything in program order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = _CPU
        self.cuda_stream = 0

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def record_event(self, event: Any = None) -> CpuEvent:
        return event or CpuEvent()


class CpuEvent:
    """An event that has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, other: Any) -> float:
        return 0.0


class _OneGenerator:
    """CUDA's generators by device index: here every index is the CPU's generator."""

    def __getitem__(self, index: Any) -> torch.Generator:
        return torch.default_generator


def install() -> None:
    """Make this process's torch answer for Megatron's CUDA calls. Idempotent.

    Raises:
        RuntimeError: when the machine has a GPU; the fake would hide it.
    """
    global _INSTALLED
    if _INSTALLED:
        return
    if torch.cuda.is_available():
        raise RuntimeError("the CPU platform was installed on a machine with a GPU")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # torch._dynamo builds its table of torch's functions on import and refuses replaced ones: let it do so first.
    importlib.import_module("torch._dynamo")
    _fake_cuda_module()
    _redirect_factories()
    _redirect_moves()
    _accept_tensor_splits()
    _gather_uneven_sizes()
    _keep_prebuilt_helpers()
    _INSTALLED = True


@contextlib.contextmanager
def cuda_said_available() -> Any:
    """Let ``torch.cuda.is_available()`` say yes for the duration of ``initialize_megatron``.

    Left true for longer it breaks torch's DataLoader (it would pin memory).
    """
    real = torch.cuda.is_available
    torch.cuda.is_available = lambda: True
    try:
        yield
    finally:
        torch.cuda.is_available = real


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _max_rss_bytes(*args: Any, **kwargs: Any) -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _fake_cuda_module() -> None:
    cuda: Any = torch.cuda
    stream = CpuStream()
    cuda.current_device = lambda: _CPU
    cuda.current_stream = cuda.default_stream = lambda *args, **kwargs: stream
    cuda.Stream, cuda.Event = CpuStream, CpuEvent
    cuda.stream = lambda *args, **kwargs: contextlib.nullcontext()
    cuda.device = lambda *args, **kwargs: contextlib.nullcontext()
    cuda.device_count = lambda: 1
    cuda.is_current_stream_capturing = lambda: False
    cuda.get_device_name = lambda *args: "CPU"
    cuda.get_device_capability = lambda *args: (0, 0)
    cuda.get_device_properties = lambda *args: SimpleNamespace(
        name="CPU", major=0, minor=0, multi_processor_count=os.cpu_count() or 1, total_memory=0
    )
    for name in ("set_device", "set_stream", "synchronize", "empty_cache", "reset_peak_memory_stats", "_lazy_call",
                 "_lazy_init", "ipc_collect"):  # fmt: skip
        setattr(cuda, name, _nothing)
    cuda._lazy_call = lambda callback, **kwargs: callback()
    for name in ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"):
        setattr(cuda, name, _max_rss_bytes)
    cuda.memory_stats = lambda *args, **kwargs: {}
    for place in (cuda, cuda.random):
        place.get_rng_state = lambda *args, **kwargs: torch.get_rng_state()
        place.set_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    # Not torch.manual_seed: that one calls these two.
    cuda.manual_seed = cuda.manual_seed_all = torch.default_generator.manual_seed
    cuda.default_generators = _OneGenerator()
    cuda.nvtx = SimpleNamespace(
        range_push=_nothing, range_pop=_nothing, mark=_nothing, range=lambda *a, **k: contextlib.nullcontext()
    )


def _is_cuda(device: Any) -> bool:
    if isinstance(device, torch.device):
        return device.type == "cuda"
    return isinstance(device, str) and device.startswith("cuda")


def _redirect_factories() -> None:
    def on_cpu(factory: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if _is_cuda(kwargs.get("device")):
                kwargs["device"] = _CPU
            kwargs.pop("pin_memory", None)
            return factory(*args, **kwargs)

        call.__name__ = getattr(factory, "__name__", "factory")
        return call

    for name in _FACTORIES:
        setattr(torch, name, on_cpu(getattr(torch, name)))


def _redirect_moves() -> None:
    tensor: Any = torch.Tensor
    move, kind = tensor.to, tensor.type

    def to(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_meta:  # a model that is only counted: Megatron moves parts of it to "the device"
            kwargs.pop("device", None)
            args = tuple(arg for arg in args if not isinstance(arg, torch.device | str))
            return move(self, *args, **kwargs) if args or kwargs else self
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = _CPU
        return move(self, *(_CPU if _is_cuda(arg) else arg for arg in args), **kwargs)

    def type_name(self: Any, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        # The optimizer sorts parameters by the names of CUDA's tensor types.
        if dtype is None:
            return kind(self).replace("torch.", "torch.cuda.", 1)
        return kind(self, dtype.replace(".cuda.", ".") if isinstance(dtype, str) else dtype, *args, **kwargs)

    tensor.to, tensor.type = to, type_name
    tensor.cuda = lambda self, *args, **kwargs: self
    tensor.pin_memory = lambda self, *args, **kwargs: self
    module: Any = torch.nn.Module
    module.cuda = lambda self, *args, **kwargs: self


def _accept_tensor_splits() -> None:
    """Megatron's expert dispatcher hands split sizes as CPU tensors when nothing had to be moved off a GPU."""
    stock = torch.distributed.all_to_all_single

    def as_list(sizes: Any) -> Any:
        return sizes.tolist() if isinstance(sizes, torch.Tensor) else sizes

    def all_to_all_single(
        output: Any,
        input: Any,
        output_split_sizes: Any = None,
        input_split_sizes: Any = None,
        *args: Any,
        **kw: Any,
    ) -> Any:
        return stock(output, input, as_list(output_split_sizes), as_list(input_split_sizes), *args, **kw)

    torch.distributed.all_to_all_single = all_to_all_single


def _gather_uneven_sizes() -> None:
    """Megatron's expert dispatcher gathers a different number of tokens from every rank; gloo pads, NCCL need not."""
    stock = torch.distributed.all_gather

    def all_gather(outputs: Any, tensor: Any, group: Any = None, async_op: bool = False) -> Any:
        longest = max(output.shape[0] for output in outputs) if outputs[0].dim() else 0
        if all(output.shape == tensor.shape for output in outputs) or not outputs[0].dim():
            return stock(outputs, tensor, group=group, async_op=async_op)
        padded = [output.new_empty(longest, *output.shape[1:]) for output in outputs]
        mine = tensor.new_zeros(longest, *tensor.shape[1:])
        mine[: tensor.shape[0]] = tensor
        stock(padded, mine, group=group)
        for output, full in zip(outputs, padded, strict=True):
            output.copy_(full[: output.shape[0]])
        return None

    torch.distributed.all_gather = all_gather  # type: ignore[assignment]


def _keep_prebuilt_helpers() -> None:
    # The wheel ships the compiled index helpers; building them again needs a Makefile that it does not ship.
    from megatron.core.datasets import utils

    utils.compile_helpers = _nothing
