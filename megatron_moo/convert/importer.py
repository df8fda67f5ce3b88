"""Hugging Face to Megatron."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_moo.convert.dist_read import COMMON, TRACKER
from megatron_moo.convert.dist_write import Chunk, new_folder, write_checkpoint
from megatron_moo.convert.pickled import PickledWeights
from megatron_moo.convert.progress import progress
from megatron_moo.convert.recipe_flags import to_arguments, to_yaml
from megatron_moo.convert.safe import Safetensors
from megatron_moo.errors import MooError
from megatron_moo.models.families import read_model
from megatron_moo.models.families.config import load_config
from megatron_moo.models.families.model import EXPERTS, Model, Rule
from megatron_moo.models.files import regular_file

KEPT = "hf"
# Files of a Hugging Face folder that go with the weights: data, never code.
SIDE_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "tokenizer.model",
    "special_tokens_map.json", "processor_config.json", "preprocessor_config.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja",
    "chat_template.json", "sentencepiece.bpe.model", "spiece.model", "tekken.json", "README.md", "LICENSE", "NOTICE",
)  # fmt: skip
# A tokenizer with several chat templates keeps all but the first in files here.
_TEMPLATES = "additional_chat_templates"
_SIDE_BYTES = 256 << 20
# Megatron keeps an empty object beside these modules (the local spec beside the linear layers, Transformer
# Engine's spec beside its own modules too) and asks for it when it loads.
_STATEFUL = ("self_attention.linear_qkv", "self_attention.linear_proj", "self_attention.core_attention")
_STATEFUL_MLP = ("mlp.linear_fc1", "mlp.linear_fc2")
_STATEFUL_MOE = ("pre_mlp_layernorm",)


@dataclass(frozen=True)
class Source:
    """A Hugging Face checkpoint, checked as far as headers."""

    folder: Path
    model: Model
    weights: Any


def open_source(folder: Path, ignore: Sequence[str] = (), allow_pickle: bool = False) -> Source:
    """Check a Hugging Face checkpoint against what its config says, without reading a tensor.

    Raises:
        MooError: naming file and tensor or key.
    """
    model = read_model(load_config(folder / "config.json", ignore))
    weights = (
        PickledWeights(folder) if allow_pickle and PickledWeights.found_in(folder) else Safetensors(folder)
    )
    _check_count(model, weights, folder)
    expected = model.hf_shapes()
    constants = [name.format(layer=i) for name in model.constants for i in range(model.layers)]
    weights.check(expected, tied=() if "lm_head.weight" in expected else ("lm_head.weight",), extra=constants)
    if "lm_head.weight" in weights.entries and "lm_head.weight" not in expected:
        _check_tied(weights, folder)
    for name, value in model.constants.items():
        for i in range(model.layers):
            _check_constant(weights, name.format(layer=i), value, folder)
    return Source(folder, model, weights)


def import_checkpoint(
    folder: Path,
    target: Path,
    ignore: Sequence[str] = (),
    allow_pickle: bool = False,
    overwrite: bool = False,
) -> Model:
    """Convert a Hugging Face checkpoint to one that ``megatron.training`` loads at any layout.

    Args:
        folder: the Hugging Face checkpoint.
        target: folder to make: ``release/`` with the weights, ``model.yaml`` with the flags, ``hf/`` with
            config and
            tokenizer.
        ignore: config keys that the user vouches for.
        allow_pickle: read ``pytorch_model*.bin`` with ``torch.load(weights_only=True)``.
        overwrite: replace a target that exists.

    Raises:
        MooError: for anything in the source that does not fit; nothing is left under ``target`` then.
    """
    source = open_source(folder, ignore, allow_pickle)
    side_files(folder)
    chunks = [chunk for rule in source.model.rules for chunk in _chunks(source, rule)]
    total = sum(chunk.bytes for chunk in chunks)
    with new_folder(target, overwrite, [folder]) as hidden:
        _check_space(hidden, total)
        with progress(total, "import") as done:
            write_checkpoint(hidden / "release", chunks, _objects(source.model, chunks[0].dtype), done)
        copy_side_files(folder, hidden / KEPT)
        (hidden / "model.yaml").write_text(to_yaml(source.model), encoding="utf-8")
        (hidden / TRACKER).write_text("release", encoding="utf-8")
    source.weights.close()
    return source.model


def make_part(source: Source, rule: Rule, place: tuple[int, ...]) -> Tensor:
    """Megatron's tensor at a place, in the dtype of the source."""
    index = place[1] if rule.experts_in_one else None
    parts = [source.weights.read(name, index) for name in source.model.names(rule, place)]
    return rule.layout.join(parts, source.model.dims).contiguous()


def _chunks(source: Source, rule: Rule) -> list[Chunk]:
    model = source.model
    shape, axes = model.whole_shape(rule), model.axes(rule)
    dtype = _dtype(source, rule)
    found = []
    for place in model.places(rule):

        def make(place: tuple[int, ...] = place) -> Tensor:
            return make_part(source, rule, place)

        for key in (rule.megatron, rule.alias):
            if key is not None:
                found.append(Chunk(key, (*axes, *shape), place, shape, dtype, make))
    return found


def _dtype(source: Source, rule: Rule) -> torch.dtype:
    """The one dtype of all that becomes one tensor: the parts of a rule in every layer and expert."""
    first: dict[torch.dtype, str] = {}
    for place in source.model.places(rule):
        for name in source.model.names(rule, place):
            first.setdefault(source.weights.entries[name].dtype, name)
    if len(first) > 1:
        told = " and ".join(f"{name} is {str(kind).removeprefix('torch.')}" for kind, name in first.items())
        raise MooError(
            f"{told}, but Megatron keeps them in one tensor",
            str(source.folder),
            "save them in one dtype first",
        )
    return next(iter(first))


def _objects(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    common = {
        "args": to_arguments(model, str(dtype).removeprefix("torch.")),
        "checkpoint_version": 3.0,
        "iteration": 0,
        "num_floating_point_operations_so_far": 0,
        "content_metadata": {"singleton_local_shards": False, "chained_optim_avoid_prefix": True},
    }
    moe = any(EXPERTS in rule.megatron for rule in model.rules)
    objects: dict[str, Any] = {COMMON: common, "decoder.final_layernorm._extra_state/shard_0_1": None}
    layers, experts = model.layers, model.dims.get("experts", 0)
    for module in (*_STATEFUL, *(_STATEFUL_MOE if moe else _STATEFUL_MLP)):
        for i in range(layers):
            objects[f"decoder.layers.{module}._extra_state/shard_{i}_{layers}"] = None
    for module in ("linear_fc1", "linear_fc2") if moe else ():
        for i in range(layers):
            for j in range(experts):
                objects[
                    f"decoder.layers.mlp.experts.experts.{module}._extra_state/shard_{i}.{j}_{layers}.{experts}"
                ] = None
    return objects


def copy_side_files(folder: Path, target: Path) -> list[str]:
    """Copy config, tokenizer and generation files, never code; returns their names.

    Raises:
        MooError: for one that is a link out of the folder: what it points at would be copied for a stranger.
    """
    target.mkdir(parents=True, exist_ok=True)
    names = []
    for name in side_files(folder):
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, target / name)
        names.append(name)
    return names


def side_files(folder: Path) -> list[str]:
    """Names of the files that go with the weights.

    Raises:
        MooError: for one that is no plain file of the folder, or too large for what it is.
    """
    names = [name for name in SIDE_FILES if os.path.lexists(folder / name)] + _templates(folder)
    for name in names:
        size = _plain(folder, name).stat().st_size
        if size > _SIDE_BYTES:
            raise MooError(
                f"is {size:,} bytes, at most {_SIDE_BYTES:,} of it are copied",
                str(folder / name),
                "move it away, and copy it yourself afterwards",
            )
    return names


def _templates(folder: Path) -> list[str]:
    place = folder / _TEMPLATES
    if not os.path.lexists(place):
        return []
    if not stat.S_ISDIR(place.lstat().st_mode):
        raise MooError("is not a folder", str(place))
    return [f"{_TEMPLATES}/{name}" for name in sorted(os.listdir(place)) if name.endswith(".jinja")]


def _plain(folder: Path, name: str) -> Path:
    path = folder / name
    # A cache's link from a folder within its snapshot goes one step further up than `regular_file` looks.
    linked = "/" in name and path.is_symlink() and path.resolve()
    if linked and linked.is_file() and linked.parent == folder.resolve().parent.parent / "blobs":
        return path
    return regular_file(path)


def _check_count(model: Model, weights: Any, folder: Path) -> None:
    """Sizes within their limits may still multiply to millions of names: none is made that no file could hold."""
    count, there = model.hf_count(), len(weights.entries)
    if count > there:
        # Found after as many names as there are tensors, at the latest.
        missing = next(name for name, _ in model.hf_tensors() if name not in weights.entries)
        raise MooError(
            f"tensor {missing!r} is missing: the config asks for {count:,} tensors and the files hold {there:,}",
            str(folder),
        )


def _check_tied(weights: Any, folder: Path) -> None:
    head, table = (weights.read(name) for name in ("lm_head.weight", "model.embed_tokens.weight"))
    if head.shape != table.shape or not torch.equal(head, table):
        raise MooError(
            "lm_head.weight differs from model.embed_tokens.weight, but the config ties them",
            str(folder / "config.json"),
            "set tie_word_embeddings to false",
        )


def _check_constant(weights: Any, name: str, value: float, folder: Path) -> None:
    if name in weights.entries:
        found = weights.read(name)
        if found.numel() != 1 or abs(float(found) - value) > 1e-2 * abs(value):
            raise MooError(f"{name} is not {value:g}, which this family has", str(folder))


def _check_space(folder: Path, need: int) -> None:
    free = shutil.disk_usage(folder).free
    if need + (64 << 20) > free:
        raise MooError(
            f"{need:,} bytes are needed and {free:,} are free", str(folder.parent), "choose another disk"
        )
