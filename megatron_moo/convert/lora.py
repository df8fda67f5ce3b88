"""Adapters out of a checkpoint: merged into the base, or as a Hugging Face PEFT folder.

Both read a ``torch_dist`` checkpoint of any layout tensor by tensor, without a model and without ranks. An export reads
the adapters only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_moo.convert.dist_read import COMMON, TRACKER, Checkpoint, checkpoint_folder
from megatron_moo.convert.dist_write import Chunk, new_folder, write_checkpoint
from megatron_moo.convert.progress import progress
from megatron_moo.errors import MooError

# What a checkpoint holds of the model; the rest is the optimizer's and the trainer's.
_MODEL = ("embedding.", "decoder.", "output_layer.")
_FACTORS = (".lora_A", ".lora_B")
_LAYER = re.compile(r"^decoder\.layers\.(?:(\d+)\.)?(.*)\.(lora_[AB])$")
_FLAGS = ("lora_rank", "lora_alpha", "lora_targets", "lora_dropout")
_PARENT = {
    "q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn",
    "gate_proj": "mlp", "up_proj": "mlp", "down_proj": "mlp",
}  # fmt: skip


def merge_checkpoint(folder: Path, target: Path) -> None:
    """Write a checkpoint of the plain model whose weights are W + (alpha / r) B A.

    The result has Megatron's ``release`` form, without optimizer state: ``--pretrained-checkpoint`` and ``convert
    export`` take it.

    Args:
        folder: a save folder (its newest checkpoint is taken) or one checkpoint, with adapters.
        target: folder to make.

    Raises:
        MooError: for a checkpoint without adapters and a target that exists; nothing is left under ``target`` then.
    """
    source, args = _open(folder)
    chunks = list(_merged_chunks(source, _scale(args)))
    kept = {name: value for name, value in vars(args).items() if name not in _FLAGS and _is_plain(value)}
    common = {
        "args": argparse.Namespace(**kept),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    # Megatron keeps an empty object beside some modules and asks for it when it loads.
    empty = {key: None for key in source.objects if key.startswith(_MODEL) and "._extra_state/" in key}
    with new_folder(target) as hidden:
        with progress(sum(_bytes(chunk) for chunk in chunks), "merge") as done:
            write_checkpoint(hidden / "release", chunks, {COMMON: common, **empty}, done)
        (hidden / TRACKER).write_text("release", encoding="utf-8")
    source.close()


def export_peft(folder: Path, target: Path, base: str | None = None) -> list[str]:
    """Write the adapters as ``adapter_config.json`` and ``adapter_model.safetensors`` for ``peft``.

    Names are those of Llama and its relatives (Qwen, Mistral). A fused layer's A is shared by its parts, its B is cut.

    Args:
        folder: a save folder (its newest checkpoint is taken) or one checkpoint, with adapters.
        target: folder to make.
        base: name or path of the base model, noted in the configuration.

    Returns:
        the adapted modules, by Hugging Face name.

    Raises:
        MooError: for a checkpoint without adapters, a model whose MLP is not gated, and a target that exists.
    """
    from safetensors.torch import save_file

    source, args = _open(folder)
    tensors = {
        # One A serves several modules; a file holds no tensor twice, so each gets its own.
        f"base_model.model.model.layers.{layer}.{_PARENT[module]}.{module}.{factor}.weight": value.clone()
        for layer, name, factor, whole in _factors(source)
        for module, value in hf_parts(name, factor, whole, args).items()
    }
    source.close()
    modules = sorted({name.split(".")[-3] for name in tensors})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": args.lora_rank,
        "lora_alpha": _scale(args) * args.lora_rank,
        "lora_dropout": args.lora_dropout or 0.0,
        "target_modules": modules,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    with new_folder(target) as hidden:
        save_file(tensors, hidden / "adapter_model.safetensors", metadata={"format": "pt"})
        (hidden / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return modules


def hf_parts(name: str, factor: str, whole: Tensor, args: Any) -> dict[str, Tensor]:
    """A factor of a Megatron layer as factors of the Hugging Face layers that it fuses.

    Args:
        name: the layer's name within its decoder layer.
        factor: ``lora_A`` ``[r, in]`` or ``lora_B`` ``[out, r]``.
        whole: the factor, not cut by tensor parallelism.
        args: with the model's heads, groups and ``swiglu``.

    Raises:
        MooError: for an MLP that is not gated.
    """
    target = name.rpartition(".")[2]
    if "mlp" in name and not args.swiglu:
        raise MooError("an MLP without a gate has no Llama names", "--swiglu", "adapt attention only")
    if target == "linear_proj":
        return {"o_proj": whole}
    if target == "linear_fc2":
        return {"down_proj": whole}
    fused = ("q_proj", "k_proj", "v_proj") if target == "linear_qkv" else ("gate_proj", "up_proj")
    if factor == "lora_A":
        return dict.fromkeys(fused, whole)
    if target == "linear_fc1":
        return dict(zip(fused, whole.chunk(2), strict=True))
    heads = args.num_attention_heads
    groups = args.num_query_groups if args.group_query_attention else heads
    # Megatron keeps the queries of a group beside its key and its value: [groups, queries + 2, head size].
    by_group = whole.view(groups, heads // groups + 2, args.kv_channels, -1)
    parts = by_group.split([heads // groups, 1, 1], dim=1)
    return {part: rows.reshape(-1, whole.shape[-1]) for part, rows in zip(fused, parts, strict=True)}


def _open(folder: Path) -> tuple[Checkpoint, Any]:
    """A checkpoint with adapters, and the arguments of the run that wrote it."""
    source = Checkpoint(checkpoint_folder(folder))
    args = source.common().get("args")
    if getattr(args, "lora_rank", None) is None or not any(key.endswith(_FACTORS) for key in source.tensors):
        raise MooError("holds no adapters", str(source.folder), "it was trained without --lora-rank")
    return source, args


def _scale(args: Any) -> float:
    return 1.0 if args.lora_alpha is None else float(args.lora_alpha) / int(args.lora_rank)


def _merged_chunks(source: Checkpoint, scale: float) -> Iterator[Chunk]:
    """The model's tensors without the factors, one chunk per layer and expert."""
    for key in source.tensors:
        if not key.startswith(_MODEL) or key.endswith(_FACTORS):
            continue
        size, dtype = source.shape(key), source.dtype(key)
        axes = size[:-2]  # Megatron stacks equal layers (and experts) into one tensor
        a, b = (key.removesuffix(".weight") + factor for factor in _FACTORS)
        adapted = key.endswith(".weight") and a in source.tensors
        for place in itertools.product(*(range(count) for count in axes)):

            def make(
                key: str = key, place: tuple[int, ...] = place, factors: Any = (a, b) if adapted else None
            ) -> Tensor:
                weight = source.read(key, place)
                if factors is None:
                    return weight.contiguous()
                low, high = (source.read(name, place).float() for name in factors)
                return (weight.float() + scale * (high @ low)).to(weight.dtype)

            yield Chunk(key, size, place, size[len(place) :], dtype, make)


def _factors(source: Checkpoint) -> Iterator[tuple[int, str, str, Tensor]]:
    """(layer, name in the layer, factor, tensor) of every adapter."""
    for key in source.tensors:
        if match := _LAYER.match(key):
            number, name, factor = match.groups()
            if number is not None:
                yield int(number), name, factor, source.read(key)
                continue
            for layer in range(source.shape(key)[0]):
                yield layer, name, factor, source.read(key, (layer,))


def _is_plain(value: Any) -> bool:
    """Whether a value is made of Python's own and torch's dtypes, which any reader may unpickle."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(_is_plain(item) for pair in value.items() for item in pair)
    return value is None or type(value) in (bool, int, float, str, torch.dtype)


def _bytes(chunk: Chunk) -> int:
    return torch.Size(chunk.shape).numel() * chunk.dtype.itemsize
