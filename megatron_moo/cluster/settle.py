"""From a recipe to Megatron's arguments for a cluster that is not there."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.arguments import lane_count, lane_groups, moo_config, slot_count
from megatron_moo.training.fused import check_fp8
from megatron_moo.training.recipe import DEFAULTS, REQUIRED, Recipe, check_keys, check_required
from megatron_moo.training.sizes import check_model


@dataclass
class Settled:
    """A recipe on N GPUs.

    Attributes:
        args: Megatron's arguments and ours, checked by Megatron's own validation.
        objectives: K.
        lanes: D.
        config: MOO's settings with S settled.
        impl: layer spec that the estimate is for, ``transformer_engine`` or ``local``.
        gpus_per_node: of a node; ranks are numbered node by node.
        notes: what the reader should know, a line each.
    """

    args: Any
    objectives: int
    lanes: int
    config: Any
    impl: str
    gpus_per_node: int
    notes: list[str] = field(default_factory=list)


def settle(recipe: Recipe, gpus: int, gpus_per_node: int) -> Settled:
    """Check a recipe as ``train`` would, for ``gpus`` ranks and without reading a corpus.

    Args:
        recipe: the recipe with the command line's flags; flags of a converted model are read from the ``model.yaml``
            beside its ``pretrained-checkpoint`` where the recipe does not say them.
        gpus: ranks in all.
        gpus_per_node: ranks of a node.

    Raises:
        MooError: for anything a user can mend.
    """
    from megatron_moo.training import plan

    for count, flag in ((gpus, "--gpus"), (gpus_per_node, "--gpus-per-node")):
        if count < 1:
            raise MooError(f"{count} is not a number of GPUs", flag, "give a whole number from 1")
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise MooError(
            f"{gpus} GPUs do not fill nodes of {gpus_per_node}",
            "--gpus",
            "give a multiple of --gpus-per-node",
        )
    notes: list[str] = []
    check_keys(recipe, plan._known_flags())
    asked = {**_model_flags(recipe, notes), **recipe.values}
    # Modules are counted with the local spec, which builds anywhere; both specs hold the same parameters.
    impl = str(asked.get("transformer-impl", "transformer_engine"))
    values: dict[str, Any] = {
        **platform.CPU_FLAGS,
        **DEFAULTS,
        **asked,
        **REQUIRED,
        "transformer-impl": "local",
    }
    args = plan._parse(values, gpus)
    check_required(recipe)
    objectives, vocabulary = _manifest(values.get("languages"), recipe, notes)
    lanes = lane_count(args, "--gpus")
    check_model(args)
    check_fp8(args, {"transformer-impl": impl}, here=False)
    if getattr(args, "fp8", None) is not None:
        notes.append("FP8 needs Transformer Engine on every node; only train looks whether it is there")
    config = moo_config(args, objectives)
    dp = gpus // (
        args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    )
    if 0 < config.slots - 1 <= config.recompute:
        notes.append(
            f"--moo-recompute {config.recompute} keeps all rows of {config.slots} slots: nothing is repeated"
        )
    # As train does: mixed batches take one pass over as many micro-batches as the slots would have.
    each = dp * args.micro_batch_size
    least = each * config.slots
    args.global_batch_size = args.global_batch_size or each * slot_count(
        args.moo_slots, objectives, lane_groups(args)
    )
    if args.global_batch_size % least:
        raise MooError(
            f"{args.global_batch_size} is not a multiple of {least} (data-parallel size {dp} x slots {config.slots} x "
            f"micro-batch size {args.micro_batch_size})", "global-batch-size",
            f"give a multiple of {least}, or leave it out",
        )  # fmt: skip
    args.max_position_embeddings = args.max_position_embeddings or args.seq_length
    args.eval_micro_batch_size, args.eval_global_batch_size = (
        args.micro_batch_size,
        dp * args.micro_batch_size,
    )
    args.vocab_size = args.vocab_size or args.padded_vocab_size or vocabulary
    if not args.vocab_size:
        raise MooError(
            "the vocabulary is not known before the corpus is built", str(recipe.path), "give --vocab-size N"
        )
    _validate(args)
    return Settled(args, objectives, lanes, config, impl, gpus_per_node, notes)


def _model_flags(recipe: Recipe, notes: list[str]) -> dict[str, Any]:
    """Flags of an imported checkpoint's ``model.yaml``; differences from the recipe are noted."""
    place = recipe.values.get("pretrained-checkpoint")
    path = Path(str(place)) / "model.yaml"
    if not place or not path.is_file():
        return {}
    try:
        flags = dict(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, ValueError):
        raise MooError(
            "not a mapping of flag names to values", str(path), "import the model again (convert import)"
        ) from None
    for key, value in flags.items():
        if key not in recipe.values:
            notes.append(f"{key} is taken from {path}; train needs it in the recipe")
        elif str(recipe.values[key]) != str(value):
            notes.append(f"{key} is {recipe.values[key]!r} in the recipe and {value!r} in {path}")
    return flags


def _manifest(languages: Any, recipe: Recipe, notes: list[str]) -> tuple[int, int | None]:
    """K, and the size of the vocabulary where the tokenizer says it by itself; the sources need not be there."""
    if not languages:
        raise MooError("no manifest", str(recipe.path), "set languages: to a languages.yaml")
    path = Path(str(languages))
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        entries = {tag: entry or {} for tag, entry in told["languages"].items()}
        objectives = len({str(entry.get("objective", tag)) for tag, entry in entries.items()})
    except (OSError, yaml.YAMLError, TypeError, KeyError, AttributeError) as error:
        raise MooError(f"cannot be read ({error})", str(path), "see docs/data.md") from None
    from megatron_moo.data import load_manifest

    try:
        load_manifest(path)
    except MooError as error:
        notes.append(f"the manifest is not ready to train: {error}")
    _note_tokenizer(told.get("tokenizer"), path, recipe, notes)
    byte = told.get("tokenizer") in (None, "byte")
    return objectives, 257 if byte else None


def _note_tokenizer(tokenizer: Any, manifest: Path, recipe: Recipe, notes: list[str]) -> None:
    """A model goes on with its own tokenizer: ``convert import`` puts it beside the checkpoint, in ``hf``."""
    place = recipe.values.get("pretrained-checkpoint")
    if not place or not isinstance(tokenizer, dict) or tokenizer.get("type") != "hf":
        return
    own, named = (Path(str(place)) / "hf").resolve(), tokenizer.get("path")
    if named is not None and (manifest.parent / str(named)).resolve() != own:
        notes.append(
            f"{manifest} names the tokenizer {named}, the model's own is {place}/hf: is it the same?"
        )


def _validate(args: Any) -> None:
    """Megatron's own validation; what it refuses becomes one line."""
    from megatron.training.arguments import validate_args

    args.rank = 0
    with refusals(args), quietly():
        validate_args(args, {})
    if not args.padded_vocab_size:
        from megatron.core.tokenizers.utils.build_tokenizer import vocab_size_with_padding

        args.padded_vocab_size = vocab_size_with_padding(args.vocab_size, args, logging_enabled=False)
    args.perform_initialization = False


@contextlib.contextmanager
def refusals(args: Any) -> Iterator[None]:
    """What Megatron refuses inside becomes one line that names the flags in it.

    Raises:
        MooError: for what Megatron's checks raise; many of them assert without a word, so their source line is told.
    """
    try:
        yield
    except (AssertionError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        line = traceback.extract_tb(error.__traceback__)[-1].line or "another value"
        line = line.removeprefix("assert ").replace("args.", "").rstrip(" ,\\(")
        said = " ".join(str(error).split()) or f"{line} is expected"
        where = ", ".join(f"--{flag}" for flag in _flags_in(said, args)[:4]) or "recipe"
        raise MooError(f"Megatron refuses it: {said}", where, "change that value") from None


def _flags_in(text: str, args: Any) -> list[str]:
    """Flags that a text names, however it spells them (``--a-b``, ``a_b``, ``a b``), in its order."""
    plain = re.sub(r"[\s_]+", "-", text.lower())
    names = sorted((name.replace("_", "-") for name in vars(args) if "_" in name), key=len, reverse=True)
    found: dict[str, int] = {}
    for name in names:
        match = re.search(rf"(?<![a-z0-9]){re.escape(name)}(?![a-z0-9])", plain)
        if match and not any(name in longer for longer in found):
            found[name] = match.start()
    return sorted(found, key=lambda name: found[name])


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Megatron prints and logs while it derives settings and builds modules: none of it is asked for here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    nowhere = io.StringIO()
    try:
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), platform.quiet():
            yield
    finally:
        logging.disable(before)
