"""What Transformer Engine and Apex bring where they are installed, one function a branch.

Which norm the local spec takes stands in models/modules/norm.py. Neither package is ever installed from here; NVIDIA's
PyTorch container has the first and may have the second. Not run on real hardware: tests/unit/training/test_fused.py
plants modules in their place that record what Megatron calls.
"""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.training import platform


def has_apex() -> bool:
    """Whether NVIDIA's Apex is installed (PyPI's package of that name is another project)."""
    spec = importlib.util.find_spec("apex")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return any(Path(folder, "optimizers").is_dir() for folder in folders)


def has_weight_gradients() -> bool:
    """Whether the matrix product can add weight gradients to the fp32 buffer by itself (an extension of Apex)."""
    return importlib.util.find_spec("fused_weight_gradient_mlp_cuda") is not None


def engine_flags() -> dict[str, Any]:
    """A GPU with Transformer Engine: its layers, norms and attention.

    Megatron's own output layer still adds weight gradients by Apex's extension and refuses to start without it.
    """
    return {"transformer-impl": "transformer_engine"} | _weight_gradients()


def local_flags() -> dict[str, Any]:
    """A GPU without Transformer Engine: Megatron's local spec without the fusions that the packages bring."""
    return dict(platform.LOCAL_GPU_FLAGS) | _weight_gradients()


def _weight_gradients() -> dict[str, Any]:
    return {"no-gradient-accumulation-fusion": not has_weight_gradients()}


def adam() -> str:
    """Whose Adam Megatron takes, in its own order; the first two update all parameters in one launch."""
    if platform.has_transformer_engine():
        return "Transformer Engine's multi-tensor Adam"
    return "Apex's multi-tensor Adam" if has_apex() else "torch's Adam"


def check_fp8(args: Any, flags: dict[str, Any], here: bool = True) -> None:
    """Refuse FP8 where no kernel for it is installed.

    Args:
        args: Megatron's parsed arguments.
        flags: the flags of a rank.
        here: whether the run is on this machine; a plan for another one asks for the layers only.

    Raises:
        MooError: naming what is missing.
    """
    if getattr(args, "fp8", None) is None:
        return
    if here and not (platform.has_gpu() and platform.has_transformer_engine()):
        missing = "a GPU" if not platform.has_gpu() else "Transformer Engine"
        raise MooError(
            f"{args.fp8} needs {missing}, which is not here", "--fp8-format", "see megatron-moo doctor"
        )
    if flags.get("transformer-impl") != "transformer_engine":
        raise MooError(
            f"{args.fp8} needs Transformer Engine's layers", "--fp8-format", "drop --transformer-impl local"
        )


def describe(flags: dict[str, Any]) -> str:
    """What a run with these flags computes with, for its first line."""
    if flags.get("transformer-impl") != "transformer_engine":
        return f"local layer spec, {adam()}"
    fp8 = flags.get("fp8-format")
    return f"Transformer Engine {engine_version()} (fused norms and attention{f', fp8 {fp8}' if fp8 else ''}), {adam()}"


def engine_version() -> str:
    """Version of Transformer Engine, or ``?`` where no metadata tells."""
    for name in ("transformer-engine", "transformer_engine", "transformer-engine-torch"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "?"
