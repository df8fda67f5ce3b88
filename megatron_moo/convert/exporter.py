"""Megatron to Hugging Face."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_moo.convert.dist_read import Checkpoint, checkpoint_folder
from megatron_moo.convert.dist_write import new_folder
from megatron_moo.convert.importer import KEPT, copy_side_files, side_files
from megatron_moo.convert.plain import plain_model
from megatron_moo.convert.progress import progress
from megatron_moo.convert.recipe_flags import differences
from megatron_moo.convert.safe_write import Group, write_shards
from megatron_moo.errors import MooError
from megatron_moo.models.families import read_model
from megatron_moo.models.families.config import load_config
from megatron_moo.models.families.extras import from_spec
from megatron_moo.models.families.model import Model, Rule


@dataclass(frozen=True)
class Target:
    """A Megatron checkpoint and the Hugging Face model that it is.

    Attributes:
        checkpoint: the weights.
        model: sizes and rules.
        config: what will be ``config.json``.
        like: folder that config and tokenizer come from, or None for a model that never had one.
    """

    checkpoint: Checkpoint
    model: Model
    config: dict[str, Any]
    like: Path | None


def open_target(folder: Path, like: Path | None = None, ignore: Sequence[str] = ()) -> Target:
    """Find out what a Megatron checkpoint is, from its arguments and from the config that it was imported
    with.

    Args:
        folder: a save folder or one checkpoint of it.
        like: a Hugging Face folder (or an imported checkpoint) with the config and the tokenizer to use.
        ignore: config keys that the user vouches for.

    Raises:
        MooError: for a config that does not fit the checkpoint, and for a model that no family describes.
    """
    checkpoint = Checkpoint(checkpoint_folder(folder))
    args = checkpoint.common().get("args")
    if args is None:
        raise MooError("holds no arguments of the run", str(checkpoint.folder))
    like = _like(like, folder, args)
    if like is None:
        model, config = plain_model(args, _rows(checkpoint), str(checkpoint.folder))
    else:
        read = load_config(like / "config.json", ignore)
        model, config = read_model(read), dict(read.values)
        _check_same(model, args, str(checkpoint.folder), like)
    for rule in model.rules:
        _check_shape(checkpoint, model, rule)
    return Target(checkpoint, model, config, like)


def export_checkpoint(
    folder: Path,
    target: Path,
    like: Path | None = None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = 5_000_000_000,
    ignore: Sequence[str] = (),
    overwrite: bool = False,
) -> Target:
    """Convert a Megatron checkpoint of any layout to a folder that transformers loads.

    Args:
        folder: a save folder (its newest checkpoint is taken) or one checkpoint.
        target: folder to make.
        like: where config and tokenizer come from when the checkpoint does not lie where it was imported.
        dtype: convert the weights to it; None keeps them.
        shard_bytes: size of a shard.
        ignore: config keys that the user vouches for.
        overwrite: replace a target that exists.

    Raises:
        MooError: as :func:`open_target`; nothing is left under ``target`` then.
    """
    found = open_target(folder, like, ignore)
    groups = [group for rule in found.model.rules for group in _groups(found, rule, dtype)]
    if found.like is not None:
        side_files(found.like)  # before the weights are written
    groups += _constants(found.model, groups[0].dtype)
    config = {**found.config, "vocab_size": found.model.dims["vocab"]}
    for key in ("torch_dtype", "dtype"):
        if key in config or (key == "dtype" and "torch_dtype" not in config):
            config[key] = str(groups[0].dtype).removeprefix("torch.")
    sources = [folder] if found.like is None else [folder, found.like]
    with new_folder(target, overwrite, sources) as hidden:
        with progress(sum(sum(group.bytes) for group in groups), "export") as done:
            write_shards(hidden, groups, shard_bytes, done)
        if found.like is not None:
            copy_side_files(found.like, hidden)
        if config != found.config or found.like is None:
            (hidden / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    found.checkpoint.close()
    return found


def read_parts(target: Target, rule: Rule, place: tuple[int, ...]) -> list[Tensor]:
    """Hugging Face's tensors of a rule at a place, cut to the real vocabulary."""
    shape = target.model.whole_shape(rule)
    return rule.layout.split(
        target.checkpoint.read(key_of(target.checkpoint, rule), place, shape), target.model.dims
    )


def key_of(checkpoint: Checkpoint, rule: Rule) -> str:
    """The key under which a checkpoint keeps a rule's tensor."""
    return rule.alias if rule.alias and rule.megatron not in checkpoint.tensors else rule.megatron


def _groups(target: Target, rule: Rule, dtype: torch.dtype | None) -> list[Group]:
    model = target.model
    kind = dtype or target.checkpoint.dtype(key_of(target.checkpoint, rule))
    shapes = model.shapes(rule)
    groups = []
    if rule.experts_in_one:
        experts = model.dims["experts"]
        for layer in range(model.layers):

            def stacked(layer: int = layer) -> list[Tensor]:
                parts = [read_parts(target, rule, (layer, e)) for e in range(experts)]
                return [torch.stack(column).to(kind) for column in zip(*parts, strict=True)]

            names = tuple(model.names(rule, (layer, 0)))
            groups.append(Group(names, tuple((experts, *shape) for shape in shapes), kind, stacked))
        return groups
    for place in model.places(rule):

        def make(place: tuple[int, ...] = place) -> list[Tensor]:
            return [part.to(kind) for part in read_parts(target, rule, place)]

        groups.append(Group(tuple(model.names(rule, place)), tuple(shapes), kind, make))
    return groups


def _constants(model: Model, dtype: torch.dtype) -> list[Group]:
    groups = []
    for name, value in model.constants.items():
        held = torch.tensor(value, dtype=dtype)
        for layer in range(model.layers):
            groups.append(Group((name.format(layer=layer),), ((),), dtype, partial(_alone, held)))
    return groups


def _alone(tensor: Tensor) -> list[Tensor]:
    return [tensor]


def _like(given: Path | None, folder: Path, args: Any) -> Path | None:
    """Folder with the config: as asked, or where the run's base was imported."""
    if given is not None:
        for place in (given, given / KEPT):
            if os.path.lexists(place / "config.json"):
                return place
        raise MooError(
            "has no config.json", str(given), "give a Hugging Face folder or an imported checkpoint"
        )
    places = [folder, folder.parent]
    places += [
        Path(path)
        for name in ("pretrained_checkpoint", "load")
        if isinstance(path := getattr(args, name, None), str)
    ]
    for place in places:
        if os.path.lexists(place / KEPT / "config.json"):
            return place / KEPT
    return None


def _rows(checkpoint: Checkpoint) -> int:
    return checkpoint.shape("embedding.word_embeddings.weight")[0]


def _check_same(model: Model, args: Any, where: str, like: Path) -> None:
    told = differences(model, args)
    spec = from_spec(getattr(args, "spec", None))
    if spec is not None and spec.family != model.family:
        told.insert(0, f"the checkpoint is a {spec.family}, the config a {model.family}")
    if told:
        raise MooError(
            f"does not fit {like / 'config.json'}: {told[0]}",
            where,
            "give the config of this model with --like",
        )


def _check_shape(checkpoint: Checkpoint, model: Model, rule: Rule) -> None:
    expected = (*model.axes(rule), *model.whole_shape(rule))
    found = checkpoint.shape(key_of(checkpoint, rule))
    table = rule.shapes[0][0] == "vocab"
    fits = found[0] >= expected[0] and found[1:] == expected[1:] if table else found == expected
    if not fits:
        raise MooError(
            f"tensor {rule.megatron!r} is {list(found)}, the config says {list(expected)}",
            str(checkpoint.folder),
        )
