"""What ``eval`` and ``analyze`` would write beside a run, made up."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.analyze.curves import CURVES

TAGS = ("en", "de", "ko")


def write_beside(run_dir: Path, tags: Sequence[str] = TAGS, layers: int = 5, step: int = 40) -> Path:
    """Write ``eval.json`` and ``analysis/analysis.json`` (two models); returns the folder."""
    (run_dir / "eval.json").write_text(json.dumps(evaluation(tags, step), ensure_ascii=False))
    (run_dir / "analysis").mkdir(exist_ok=True)
    (run_dir / "analysis" / "analysis.json").write_text(
        json.dumps(analysis(run_dir.name, tags, layers, step))
    )
    return run_dir


def evaluation(tags: Sequence[str], step: int = 40) -> dict[str, Any]:
    """As eval.json."""
    languages = {
        tag: {
            "loss": 2.0 + i,
            "bits_per_byte": 1.5 + i,
            "perplexity": 7.4 * (i + 1),
            "tokens": 900,
            "bytes": 4321,
            "cloze": {"acc": 0.3, "acc_norm": 0.35 + 0.05 * i, "interval": [0.2, 0.6], "items": 20},
            "sample": {"prompt": f"first words in {tag}", "text": "and <b>then</b>"},
        }
        for i, tag in enumerate(tags)
    }
    cloze = {"items": 20, "chance": 0.25}
    return {"model": "fake", "step": step, "seq_length": 128, "languages": languages, "cloze": cloze}


def analysis(name: str, tags: Sequence[str], layers: int, step: int = 40) -> dict[str, Any]:
    """As analysis.json of ``--against``."""
    between = [
        {"layer": i, "cka": 1 - 0.1 * i, "cka_by": dict.fromkeys(tags, 1 - 0.15 * i)} for i in range(layers)
    ]
    models = [_model(name, tags, layers, 0, step), _model("before", tags, layers, 1, None)]
    return {"models": models, "between": between}


def _model(name: str, tags: Sequence[str], layers: int, seed: int, step: int | None) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    count = len(tags)

    def matrix() -> list[list[float]]:
        values = random.uniform(0.1, 0.9, (count, count))
        np.fill_diagonal(values, 1.0)
        return values.round(4).tolist()

    found = []
    for i in range(layers):
        layer: dict[str, Any] = {"layer": i, **{key: random.uniform() for key in CURVES if key != "owned"}}
        layer |= {"cka_matrix": matrix(), "retrieval_matrix": matrix()}
        layer["plane"] = random.normal(size=(count, 12, 2)).round(4).tolist()
        if i:
            layer |= {
                "owned": random.uniform(),
                "entropy": 0.9,
                "owned_by": {tag: i + j for j, tag in enumerate(tags)},
            }
        found.append(layer)
    chance = {"probe": 1 / count, "retrieval": 1 / 12}
    return {
        "model": name,
        "step": step,
        "languages": list(tags),
        "sentences": 12,
        "chance": chance,
        "layers": found,
    }
