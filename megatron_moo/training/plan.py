"""From a recipe to what every rank is told: checked before any rank starts."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.arguments import (
    FLAG_NAMES,
    add_moo_arguments,
    lane_count,
    lane_groups,
    moo_config,
    slot_count,
)
from megatron_moo.training.fused import check_fp8
from megatron_moo.training.integrity import check_owner
from megatron_moo.training.recipe import DEFAULTS, REQUIRED, Recipe, check_keys, check_required, to_argv
from megatron_moo.training.sizes import check_model, check_sizes
from megatron_moo.training.support import check_supported
from megatron_moo.training.watchdog import group_minutes

if TYPE_CHECKING:
    from megatron_moo.training.feed import Feed

# Flags that may differ when a run folder is used again.
MAY_CHANGE = (
    "run-dir", "corpus", "nproc", "name", "max-restarts", "train-iters", "exit-interval", "exit-duration-in-mins",
    "log-interval", "eval-interval", "save-interval", "save", "load", "tensorboard-dir", "languages",
    "moo-early-stop", "moo-patience",
    "moo-other-places", "moo-keep-last", "moo-skip-verify", "moo-trust-load", "moo-timeout", "exit-signal-handler",
    "ckpt-step", "async-save", "async-strategy", "use-persistent-ckpt-worker", "distributed-timeout-minutes",
    # Where the parts of the model lie: the update does not depend on it.
    "tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size",
    "expert-model-parallel-size", "expert-tensor-parallel-size", "sequence-parallel",
)  # fmt: skip
# Flags that are settled here, so that the model and the batch stay what they were.
_SETTLED = ("moo-slots", "eval-global-batch-size", "make-vocab-size-divisible-by")


@dataclass
class RunPlan:
    """A run that can start.

    Attributes:
        run_dir: run folder.
        flags: every flag of a rank.
        world: number of ranks.
        train_iters: steps.
        summary: one line that says what will run.
        notes: warnings about the data, a line each.
    """

    run_dir: Path
    flags: dict[str, Any]
    world: int
    train_iters: int
    summary: str
    notes: list[str]


def plan_run(recipe: Recipe, runs: Path, progress: Callable[[str], None]) -> RunPlan:
    """Check the recipe against manifest and machine, build the corpus, and settle every flag.

    Args:
        recipe: recipe with the command line's flags.
        runs: where run folders and corpora lie (``runs/``).
        progress: told in a line what takes time.

    Raises:
        MooError: for anything a user can mend.
    """
    from megatron_moo.data import build_corpus, load_manifest
    from megatron_moo.training.evaluation import early_stopping
    from megatron_moo.training.feed import Feed, check_places

    values = platform.default_flags() | DEFAULTS | recipe.values | REQUIRED
    if not values.get("languages"):
        raise MooError("no manifest", str(recipe.path), "set languages: to a languages.yaml")
    check_keys(recipe, _known_flags())
    world = _world(values)
    args = _parse(values, world)
    check_required(recipe)  # after what cannot work, of which Megatron asks for other values here
    manifest = load_manifest(values["languages"])
    lanes = lane_count(args)
    check_model(args)
    check_fp8(args, values)
    run_dir = Path(values.get("run-dir") or runs / recipe.name)
    before = _claimed(run_dir)
    args.moo_slots = _slots(args, len(manifest.objectives), lanes, before)
    config = moo_config(args, len(manifest.objectives))
    places, earlier = 0 if args.moo_mixed else lanes * config.slots, int(before.get("places", 0))
    check_places(str(run_dir), earlier, places, args.moo_other_places)
    early_stopping(args, (*manifest.languages, *manifest.unseen))
    dp = args.world_size // (
        args.tensor_model_parallel_size * args.pipeline_model_parallel_size * args.context_parallel_size
    )
    # The record of a run holds our settings also where they are the defaults.
    ours = {name: getattr(args, name.replace("-", "_")) for name in FLAG_NAMES if name.startswith("moo-")}
    values = {**{name: value for name, value in ours.items() if value not in (None, False, [])}, **values}
    values["moo-slots"] = args.moo_slots
    least = dp * args.micro_batch_size
    _settle_batch(values, args, before, least * args.moo_slots)
    if args.global_batch_size % (least * config.slots):
        raise MooError(
            f"{args.global_batch_size} is not a multiple of {least * config.slots} (data-parallel size {dp} x slots "
            f"{config.slots} x micro-batch size {args.micro_batch_size})",
            "global-batch-size",
            "leave it out to get one micro-batch per lane and slot"
            if "global-batch-size" in recipe.values
            else "choose slots and micro-batch size that divide the batch of the run that goes on",
        )
    corpus_dir = Path(values.get("corpus") or runs / "data" / _corpus_name(Path(values["languages"])))
    progress("preparing the languages")
    corpus = build_corpus(manifest, corpus_dir)
    values |= {
        "languages": str(Path(values["languages"]).resolve()),
        "run-dir": str(run_dir.resolve()),
        "corpus": str(Path(corpus.path).resolve()),
        "vocab-size": corpus.vocab_size,
        "tensorboard-dir": str((run_dir / "tensorboard").resolve()),
        "save": str((run_dir / "checkpoints").resolve()),
    }
    padded = _settle_vocabulary(values, args, before, corpus.vocab_size)
    given = args.distributed_timeout_minutes if "distributed-timeout-minutes" in values else None
    values["distributed-timeout-minutes"] = group_minutes(args.moo_timeout, given)
    values.setdefault("max-position-embeddings", args.seq_length)
    values.setdefault("load", values["save"])
    if values.get("async-save"):
        # Megatron's default strategy needs a package of NVIDIA's; its own is as good for one machine.
        values.setdefault("async-strategy", "nvrx" if find_spec("nvidia_resiliency_ext") else "mcore")
        values.setdefault("use-persistent-ckpt-worker", True)
    feed = Feed(args, manifest, corpus, lanes, config.slots)
    values |= {"eval-iters": 1, "eval-micro-batch-size": args.micro_batch_size}
    values["eval-global-batch-size"] = len(feed.valid(0, dp)) * dp * args.micro_batch_size
    law = feed.schedule.fingerprint()
    _check_tokenizer(run_dir, corpus, before)
    check_owner(values, trusted=args.moo_trust_load)
    _claim(
        run_dir,
        recipe,
        values,
        before,
        {"places": places, "law": law, "tokenizer": corpus.tokenizer_hash, "vocabulary": padded},
    )
    how = f"{len(manifest.objectives)} objectives on {_counted(lanes, 'lane')} x {config.slots} slots; "
    how += f"{config.method} per {config.block}"
    if args.moo_mixed:
        how = "mixed inside micro-batches, plain mean"
    summary = (
        f"{len(manifest.languages)} languages, {how}; {_counted(world, 'rank')} on "
        f"{'GPU' if platform.has_gpu() else 'CPU'}"
    )
    notes = _place_notes(feed, earlier, places)
    if before.get("places") == places and before.get("law", law) != law:
        notes.append("other shares than the run had: the sampling law begins anew, samples go on")
    notes += feed.notes
    return RunPlan(run_dir, values, world, int(args.train_iters), summary, notes)


def _check_tokenizer(run_dir: Path, corpus: Any, before: dict[str, Any]) -> None:
    """Refuse to go on with another tokenizer: the model's embeddings would belong to other tokens."""
    if before.get("tokenizer", corpus.tokenizer_hash) != corpus.tokenizer_hash:
        raise MooError(
            f"its run was trained with another tokenizer than {corpus.tokenizer_name} "
            f"({corpus.tokenizer_hash[:12]}, was {before['tokenizer'][:12]})",
            str(run_dir),
            "name the earlier one in the manifest (a SentencePiece model that is trained on the languages changes with "
            "them: keep its file and give its path), or choose another --run-dir",
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}"


def _settle_batch(values: dict[str, Any], args: Any, before: dict[str, Any], one_each: int) -> None:
    """The global batch: as asked, or that of the run that goes on, or one micro-batch per lane and slot."""
    values.setdefault("global-batch-size", before.get("flags", {}).get("global-batch-size", one_each))
    args.global_batch_size = int(values["global-batch-size"])


def _settle_vocabulary(values: dict[str, Any], args: Any, before: dict[str, Any], size: int) -> int:
    """The vocabulary that the model has, padding included: that of the run that goes on.

    Megatron pads to a multiple of ``make-vocab-size-divisible-by`` x tensor-parallel size, and the padding takes part
    in the loss: another size of it is another model.

    Raises:
        MooError: when the run's vocabulary does not divide into the tensor-parallel ranks.
    """
    flags, tp = before.get("flags", {}), int(args.tensor_model_parallel_size)
    each = int(args.make_vocab_size_divisible_by)
    padded = _padded(size, each * tp)
    if before:
        earlier = int(flags.get("tensor-model-parallel-size") or 1)
        old = int(flags.get("make-vocab-size-divisible-by") or each) * earlier
        padded = int(before.get("vocabulary") or _padded(int(flags.get("vocab-size") or size), old))
        if padded % tp:
            raise MooError(
                f"the run's vocabulary of {padded} does not divide into {tp} ranks",
                "--tensor-model-parallel-size",
            )
    if padded != _padded(size, each * tp):
        values["make-vocab-size-divisible-by"] = padded // tp
    return padded


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _claimed(run_dir: Path) -> dict[str, Any]:
    """The record of the run that a folder holds, empty without one."""
    path = run_dir / "recipe.yaml"
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.exists() else {}


def _slots(args: Any, objectives: int, lanes: int, before: dict[str, Any]) -> int:
    """S; with ``auto`` a run that goes on keeps its places a step (DESIGN section 3) where the lanes allow."""
    places = int(before.get("places", 0))
    if args.moo_slots == "auto" and places and places % lanes == 0:
        return places // lanes
    return slot_count(args.moo_slots, objectives, lane_groups(args))


def _place_notes(feed: Feed, earlier: int, places: int) -> list[str]:
    if not places:
        return []
    objectives, notes = len(feed.manifest.objectives), []
    if earlier not in (0, places):
        notes.append(
            f"{places} places a step (slots x lanes) where the run had {earlier}: which objective comes when begins "
            "anew, samples go on"
        )
    if feed.schedule.presence == "present" and objectives > places:
        notes.append(f"{objectives} objectives rotate over {places} places a step: not each is in every step")
    return notes


def _corpus_name(manifest: Path) -> str:
    """Folder of a manifest's corpus: its own, so that runs of two manifests do not replace each other's."""
    place = str(manifest.resolve())
    return f"{manifest.resolve().parent.name}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def _world(values: dict[str, Any]) -> int:
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    given = values.get("nproc")
    if given is not None:
        if not str(given).isdigit() or int(given) < 1:
            raise MooError(f"{given!r} is not a number of ranks", "--nproc")
        return int(given)
    if platform.has_gpu():
        import torch

        return torch.cuda.device_count()
    return min(2, os.cpu_count() or 1)


@cache
def _parser() -> Any:
    """Megatron's parser with our flags; it has hundreds of them and takes a while to build."""
    import argparse

    platform.prepare()
    with platform.quiet():
        from megatron.training.arguments import add_megatron_arguments
    parser = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    return add_moo_arguments(add_megatron_arguments(parser))


def _known_flags() -> list[str]:
    options = (option for action in _parser()._actions for option in action.option_strings)
    return sorted({option.removeprefix("--") for option in options if option.startswith("--")})


def read_flags(argv: list[str]) -> Any:
    """Let Megatron's parser read a command line (without the program's name); its own complaint becomes one line.

    Raises:
        MooError: for flags that do not exist and values of another kind.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return _parser().parse_args(argv)
    except SystemExit:
        line = said.getvalue().strip().splitlines()[-1]
        raise MooError(line.split("error: ", 1)[-1], "recipe or command line") from None
    except SyntaxError as error:  # Megatron evaluates patterns of layers
        text = (error.text or "").strip()
        names = [flag for flag, value in pairwise(argv) if value.strip() == text and flag.startswith("--")]
        raise MooError(
            f"{text!r} is no pattern ({error.msg})",
            ", ".join(names) or "recipe or command line",
            "give a list such as [1,0,1]",
        ) from None


def _parse(values: dict[str, Any], world: int) -> Any:
    """Read the values and refuse what cannot work, first of all by name; then what is missing or does not fit."""
    args = read_flags(to_argv(values))
    check_supported(args)
    args.world_size = world
    for name in ("micro_batch_size", "seq_length", "train_iters", "num_layers", "hidden_size"):
        if getattr(args, name) is None:
            raise MooError("is not set", name.replace("_", "-"), "add it to the recipe")
    check_sizes(args)
    return args


def _claim(
    run_dir: Path, recipe: Recipe, values: dict[str, Any], before: dict[str, Any], facts: dict[str, Any]
) -> None:
    """Write the recipe as run with ``facts`` beside it, or refuse a folder that another recipe wrote (``before``)."""
    path = run_dir / "recipe.yaml"
    mine = {key: value for key, value in values.items() if key not in MAY_CHANGE}
    if before:
        flags = before.get("flags", {})
        keys = sorted(
            key for key in {*mine, *flags} - set(MAY_CHANGE) if str(mine.get(key)) != str(flags.get(key))
        )
        # Other slots on another number of ranks are the same run while slots x lanes stays; else it is told.
        keys = [key for key in keys if key not in _SETTLED]
        if keys:
            told = ", ".join(f"{key} was {flags.get(key)!r} and is {mine.get(key)!r}" for key in keys[:3])
            raise MooError(
                f"belongs to another recipe ({told})",
                str(run_dir),
                "choose another --run-dir or move that folder",
            )
    run_dir.mkdir(parents=True, exist_ok=True)
    record = {
        "recipe": recipe.path.name,
        "versions": _versions(),
        **facts,
        "flags": dict(sorted(values.items())),
    }
    temporary = path.with_suffix(".tmp")
    temporary.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
    temporary.replace(path)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    import megatron_moo

    return {
        "megatron_moo": megatron_moo.__version__,
        "megatron-core": version("megatron-core"),
        "torch": version("torch"),
        "python": ".".join(map(str, sys.version_info[:3])),
    }
