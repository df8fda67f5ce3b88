"""Run by test_fused.py in a process of its own: plant stand-ins, build a model and an optimizer, say what was called.

``python -m tests.unit.training.fused_program {engine,apex,neither} RECIPE FOLDER``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.unit.training import stand_in


def plant(what: str, folder: Path) -> None:
    if what == "engine":
        stand_in.plant(
            "transformer_engine", "transformer_engine_torch", versions={"transformer_engine": "2.9.0"}
        )
    if what == "apex":
        (folder / "apex" / "optimizers").mkdir(parents=True)
        stand_in.plant(
            "apex", "amp_C", "fused_weight_gradient_mlp_cuda", folders={"apex": str(folder / "apex")}
        )


def main(what: str, recipe: str, folder: str) -> dict[str, Any]:
    plant(what, Path(folder))
    from megatron_moo.training import fused, platform

    platform.prepare()
    # Of a machine with a GPU; the modules are built without memory, so that none is needed.
    platform.has_gpu = lambda: True  # type: ignore[assignment]
    flags = platform.default_flags()
    from megatron_moo.cluster import world
    from megatron_moo.cluster.settle import settle
    from megatron_moo.training.recipe import load_recipe

    asked = [
        "--bf16",
        *(["--fp8-format", "hybrid"] if what == "engine" else ["--normalization", "LayerNorm"]),
    ]
    args = settle(load_recipe(Path(recipe), asked), 1, 1).args
    args.transformer_impl, args.use_cpu_initialization = flags["transformer-impl"], False
    args.gradient_accumulation_fusion = not flags["no-gradient-accumulation-fusion"]
    with world._world(args, 0):
        (model,) = world._chunks(args)
        return {
            "flags": flags,
            "line": fused.describe(flags | ({"fp8-format": "hybrid"} if what == "engine" else {})),
            "modules": sorted({type(module).__name__ for module in model.modules()}),
            "fusion": model.output_layer.gradient_accumulation_fusion,
            "optimizer": _optimizer(),
            "fp8": _fp8(model.config),
            "calls": sorted({name for name, _ in stand_in.CALLS}),
            "attention": [_plain(kw) for kw in stand_in.called("DotProductAttention")],
        }


def _optimizer() -> str:
    """Megatron's optimizer for one parameter; whose Adam it made."""
    import torch
    from megatron.core.optimizer import OptimizerConfig, _get_megatron_optimizer_based_on_param_groups

    param = torch.nn.Parameter(torch.zeros(4))
    groups = [{"params": [param], "lr": 1e-3, "weight_decay": 0.0}]
    config = OptimizerConfig(optimizer="adam", lr=1e-3)
    made = _get_megatron_optimizer_based_on_param_groups(config, [torch.nn.Linear(1, 1)], groups)
    return f"{type(made.optimizer).__module__}.{type(made.optimizer).__name__}"


def _fp8(config: Any) -> list[dict[str, Any]]:
    """What a layer's forward pass is wrapped in."""
    from megatron.core.fp8_utils import get_fp8_context

    with get_fp8_context(config):
        return [_plain(kw) for kw in stand_in.called("fp8_autocast")]


def _plain(kw: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in kw.items() if isinstance(value, bool | int | float | str)}


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(main(*sys.argv[1:])) + "\n")
