"""Recipes: a YAML file whose keys are Megatron's flag names and ours, and flags that win over it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_moo.errors import MooError

# Keys of ours that are not flags of a rank.
LAUNCH_KEYS = ("nproc", "name", "max-restarts")
PATH_KEYS = ("languages", "corpus", "run-dir", "load", "pretrained-checkpoint", "save", "tensorboard-dir")

# What a run of Bucket-Level MOO needs of Megatron, whatever the recipe says.
REQUIRED: dict[str, Any] = {
    "use-distributed-optimizer": True,
    "ddp-reduce-scatter-with-fp32-accumulation": True,
    # Megatron's own check runs before the exchange and is fatal; ours masks the language (DESIGN section 3, trap 6).
    "no-check-for-nan-in-loss-and-grad": True,
    "dataloader-type": "external",
    "tokenizer-type": "NullTokenizer",
}
# What most runs want; a recipe may say otherwise.
DEFAULTS: dict[str, Any] = {
    "calculate-per-token-loss": True,
    "overlap-grad-reduce": True,
    "ckpt-format": "torch_dist",
    "log-interval": 1,
    "dist-ckpt-optim-fully-reshardable": True,
    "eval-interval": 100,
    "save-interval": 100,
    # SIGTERM to one rank: all of them save and leave.
    "exit-signal-handler": True,
}


@dataclass
class Recipe:
    """A recipe with the command line's flags laid over it.

    Attributes:
        path: the YAML file.
        values: flag name (without dashes) to value.
        overrides: names that the command line gave.
    """

    path: Path
    values: dict[str, Any]
    overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the run: the recipe's, and what the command line changed."""
        parts = [str(self.values.get("name", self.path.stem))]
        for key, value in self.overrides.items():
            if key not in (*LAUNCH_KEYS, "run-dir", "exit-interval"):
                text = key if value is True else f"{key}-{_text(value)}"
                parts.append("".join(c if c.isalnum() or c in "-._" else "-" for c in text))
        return "-".join(parts)


def load_recipe(path: Path, flags: Sequence[str]) -> Recipe:
    """Read ``path`` and lay ``flags`` (``--key value …``) over it.

    Raises:
        MooError: naming file and line for something that is not a mapping of flags.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MooError(f"cannot be read ({error})", str(path), "give the path of a recipe") from None
    try:
        values = yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark else str(path)
        raise MooError(f"not YAML ({getattr(error, 'problem', error)})", place) from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise MooError("not a mapping of flag names to values", str(path))
    values = {key.replace("_", "-"): value for key, value in values.items()}
    for key in PATH_KEYS:
        if isinstance(values.get(key), str):
            values[key] = str(path.parent / values[key])
    overrides = parse_flags(flags)
    if overrides.get("moo-method", values.get("moo-method")) != values.get("moo-method"):
        values.pop("moo-option", None)  # they are options of the method that the command line replaces
    return Recipe(path, values | overrides, overrides)


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """``["--a", "1", "--b"]`` to ``{"a": "1", "b": True}``; a flag with several values gives a list.

    A flag that is given again takes the place of what it said before; ``--moo-option`` adds to it.

    Raises:
        MooError: for a value that belongs to no flag.
    """
    found: dict[str, Any] = {}
    key = None
    for word in flags:
        if word.startswith("--"):
            key, _, value = word[2:].partition("=")
            key = key.replace("_", "-")
            if key != "moo-option" or key not in found:
                found[key] = True
            if value:
                _put(found, key, value)
        elif key is None:
            raise MooError(f"{word!r} belongs to no flag", "command line", "write --flag value")
        else:
            _put(found, key, word)
    return found


def _put(found: dict[str, Any], key: str, value: str) -> None:
    if found[key] is True:
        found[key] = value
    else:
        found[key] = [*(found[key] if isinstance(found[key], list) else [found[key]]), value]


def to_argv(values: dict[str, Any]) -> list[str]:
    """Flag values to a command line. True is a bare flag; False, None and launch keys are left out."""
    argv: list[str] = []
    for key, value in values.items():
        if key in LAUNCH_KEYS or value is None or value is False:
            continue
        if value is True:
            argv.append(f"--{key}")
        elif key == "moo-option":
            for item in value if isinstance(value, list) else [value]:
                argv += [f"--{key}", str(item)]
        else:
            argv += [f"--{key}", *([str(v) for v in value] if isinstance(value, list) else [str(value)])]
    return argv


def check_keys(recipe: Recipe, known: Sequence[str]) -> None:
    """Refuse a key that is no flag, with the nearest one that is.

    Raises:
        MooError: naming file or command line.
    """
    for key in recipe.values:
        if key not in known and key not in LAUNCH_KEYS:
            near = difflib.get_close_matches(key, known, n=1)
            where = "command line" if key in recipe.overrides else str(recipe.path)
            raise MooError(
                f"unknown flag {key!r}",
                where,
                f"did you mean {near[0]!r}?" if near else "see megatron-moo train --help",
            )


def check_required(recipe: Recipe) -> None:
    """Refuse another value for a flag of :data:`REQUIRED`.

    Raises:
        MooError: naming file or command line.
    """
    for key, value in REQUIRED.items():
        if key in recipe.values and recipe.values[key] != value:
            where = "command line" if key in recipe.overrides else str(recipe.path)
            raise MooError(f"{key} is {recipe.values[key]!r}, MOO needs {value!r}", where, f"remove {key}")


def _text(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, list) else str(value)
