"""What other commands wrote beside a run: ``eval.json`` of ``megatron-moo eval``, ``analysis/`` of ``analyze``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVAL_FILE = "eval.json"
ANALYSIS_DIR = "analysis"
ANALYSIS_FILE = "analysis.json"


@dataclass(frozen=True)
class Beside:
    """Empty where a command has not run; ``trouble`` says by file why it could not be read.

    Attributes:
        run: the run folder as a user would type it.
        evaluation: as ``eval`` wrote it; ``languages`` maps tags to mappings.
        models: what ``analyze`` found for every model, ``layers`` are mappings.
        between: per layer, CKA between the two models of ``--against``.
    """

    run: str = "RUN"
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[Mapping[str, Any], ...] = ()
    between: tuple[Mapping[str, Any], ...] = ()
    trouble: Mapping[str, str] = field(default_factory=dict)


def read_beside(run_dir: Path) -> Beside:
    """Read both files of a run folder; nothing in them can make this fail."""
    trouble: dict[str, str] = {}
    told = _read(run_dir / EVAL_FILE, trouble)
    languages = {str(tag): item for tag, item in mapping(told.get("languages")).items() if mapping(item)}
    evaluation = {**told, "languages": languages} if languages else {}
    if told and not languages:
        trouble[EVAL_FILE] = "it names no language"
    told = _read(run_dir / ANALYSIS_DIR / ANALYSIS_FILE, trouble)
    models = tuple(_model(one) for one in sequence(told.get("models") or [told]) if _is_model(one))
    if told and not models:
        trouble[ANALYSIS_FILE] = "it holds no model's layers"
    between = tuple(mapping(layer) for layer in sequence(told.get("between")) if mapping(layer))
    return Beside(f"runs/{run_dir.resolve().name}", evaluation, models, between, trouble)


def _read(path: Path, trouble: dict[str, str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        trouble[path.name] = "it is no JSON"
        return {}
    if not isinstance(told, Mapping) or not told:
        trouble[path.name] = "it holds nothing"
        return {}
    return told


def _is_model(one: object) -> bool:
    told = mapping(one)
    return bool(sequence(told.get("languages"))) and any(
        mapping(layer) for layer in sequence(told.get("layers"))
    )


def _model(one: Mapping[str, Any]) -> Mapping[str, Any]:
    layers = [mapping(layer) for layer in sequence(one.get("layers")) if mapping(layer)]
    return {
        **one,
        "model": str(one.get("model", "model")),
        "languages": tuple(str(tag) for tag in sequence(one.get("languages"))),
        "layers": [{**layer, "layer": _whole(layer.get("layer"), i)} for i, layer in enumerate(layers)],
    }


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) else otherwise


def number(value: object) -> float:
    """A float; anything that is none is NaN."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def mapping(value: object) -> Mapping[str, Any]:
    """A mapping; anything else is an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> Sequence[Any]:
    """A list; anything else is an empty one."""
    return value if isinstance(value, list | tuple) else ()
