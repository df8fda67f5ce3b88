"""Which machine this is, and what Megatron is told about it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any

# Flags that a machine without a GPU needs, whatever the recipe.
CPU_FLAGS: dict[str, Any] = {
    "distributed-backend": "gloo",
    "use-cpu-initialization": True,
    "transformer-impl": "local",
    "no-gradient-accumulation-fusion": True,
    "no-masked-softmax-fusion": True,
    "no-bias-swiglu-fusion": True,
    "no-bias-dropout-fusion": True,
    "no-rope-fusion": True,
    "no-persist-layer-norm": True,
}
# A GPU without Transformer Engine: Megatron's local spec without the fusions that other packages bring (fused.py).
LOCAL_GPU_FLAGS: dict[str, Any] = {
    "transformer-impl": "local",
    "no-masked-softmax-fusion": True,
    "no-rope-fusion": True,
    "no-persist-layer-norm": True,
}


_CPU_PLATFORM = "megatron_moo.training.platform_cpu"


def has_gpu() -> bool:
    """Whether this machine has a GPU that torch can use (asked without starting CUDA)."""
    if _CPU_PLATFORM in sys.modules:  # it is never imported where there is one, and fakes the answers below
        return False
    import torch

    return torch.cuda.is_available()


def has_transformer_engine() -> bool:
    """Whether Transformer Engine's torch part is installed."""
    return importlib.util.find_spec("transformer_engine") is not None


def default_flags() -> dict[str, Any]:
    """Megatron flags for this machine; a recipe may override them."""
    if not has_gpu():
        return dict(CPU_FLAGS)
    from megatron_moo.training import fused

    return fused.engine_flags() if has_transformer_engine() else fused.local_flags()


def prepare() -> None:
    """Make this process ready to import Megatron: on a machine without a GPU, install the CPU platform."""
    os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    if has_gpu():
        return
    from megatron_moo.training import platform_cpu

    with quiet():
        platform_cpu.install()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Import Megatron without a warning for every optional package that is not installed; `doctor` says it once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def initialising() -> contextlib.AbstractContextManager:
    """Context in which ``initialize_megatron`` may run on this machine."""
    if has_gpu():
        return contextlib.nullcontext()
    from megatron_moo.training import platform_cpu

    return platform_cpu.cuda_said_available()
