"""A run folder as the trainer would write it, with believable numbers, for tests and for looking at."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SEEN = ("en", "fr", "de", "es", "ru", "el", "ko", "ja", "zh-Hans", "ar", "hi", "tr", "fi", "sw")
UNSEEN = ("it", "pl", "vi", "uk", "pt-BR", "sr-Latn")
BLOCKS = ("embedding", *(f"decoder.layers.{i}" for i in range(12)), "head")
PHASES = {"compute": 0.78, "exchange": 0.11, "solve": 0.02, "combine": 0.03, "optimizer": 0.06}

RECIPE = """\
# as run
languages: languages.yaml
num-layers: 12
hidden-size: 96
train-iters: {iters}
global-batch-size: 14
moo-method: cagrad
moo-block: layer
moo-option: [c=0.5]
versions:
  megatron-moo: 0.1.0
  megatron-core: 0.19.2
  torch: 2.13.0
  python: 3.12.1
"""


@dataclass
class FakeRun:
    """Writes a run folder; every number follows from the seed."""

    seen: Sequence[str] = SEEN
    unseen: Sequence[str] = UNSEEN
    blocks: Sequence[str] = BLOCKS
    steps: int = 60
    eval_every: int = 10
    seed: int = 7
    noise_floor: bool = True
    finished: bool = True
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        languages = len(self.seen) + len(self.unseen)
        self._floor = self.rng.uniform(1.6, 2.6, languages)
        self._speed = self.rng.uniform(0.04, 0.09, languages)
        self._bytes_per_token = self.rng.uniform(1.0, 1.02, languages)
        vectors = self.rng.normal(size=(len(self.seen), 6))
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        self._relation = vectors @ vectors.T

    def write(self, run_dir: Path) -> Path:
        """Write ``metrics.jsonl`` and ``recipe.yaml``; returns the folder."""
        run_dir.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(record, ensure_ascii=False) for record in self.records()]
        (run_dir / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (run_dir / "recipe.yaml").write_text(RECIPE.format(iters=self.steps), encoding="utf-8")
        return run_dir

    def records(self) -> list[dict[str, Any]]:
        """All lines of the run."""
        notes = ["text that repeats more than 4 times in this run: sw 6.1x"]
        start = {"event": "start", "time": 1.77e9, "train_iters": self.steps, "notes": notes}
        records: list[dict[str, Any]] = [start]
        for step in range(1, self.steps + 1):
            records.append(self.step_record(step))
            if self.unseen and (step % self.eval_every == 0 or step == 1):
                records.append(self.valid_record(step))
                records.append(self.drawn_record(step))
        if self.finished:
            records.append({"event": "end", "time": 1.77e9 + 3.0 * self.steps, "step": self.steps})
        return records

    def _loss(self, language: int, step: int) -> float:
        return float(self._floor[language] + 3.0 * math.exp(-self._speed[language] * (step - 1)))

    def step_record(self, step: int) -> dict[str, Any]:
        """One training step."""
        seconds = float(2.9 + 0.15 * self.rng.standard_normal() + (1.5 if step == 1 else 0.0))
        tokens = {tag: 1024 * (2 if i < 2 else 1) for i, tag in enumerate(self.seen)}
        noise = self.rng.normal(0, 0.06, len(self.seen))
        return {
            "step": step,
            "objectives": list(self.seen),
            "loss": {tag: self._loss(i, step) + float(noise[i]) for i, tag in enumerate(self.seen)},
            "tokens": tokens,
            "samples": {tag: count // 256 for tag, count in tokens.items()},
            "grad_norm": float(1.8 * math.exp(-step / 40) + 0.5 + 0.1 * self.rng.random()),
            "lr": 3e-3 * min(1.0, step / 10) * (1.0 if step < 10 else math.cos((step - 10) / self.steps)),
            "step_time_s": seconds,
            "tokens_per_s": sum(tokens.values()) / seconds,
            "phase_s": {name: share * seconds for name, share in PHASES.items()},
            "moo": self._moo(step),
        }

    def _moo(self, step: int) -> dict[str, Any]:
        k = len(self.seen)
        fade = math.exp(-step / 35)
        cosine = np.clip(0.25 * self._relation + 0.35 * fade + 0.03 * self.rng.normal(size=(k, k)), -1, 1)
        cosine = (cosine + cosine.T) / 2
        np.fill_diagonal(cosine, 1.0)
        depth = np.linspace(0, 1, len(self.blocks))
        conflict = np.clip(0.42 - 0.3 * fade - 0.25 * depth + 0.04 * self.rng.normal(size=len(depth)), 0, 1)
        weights = np.exp(
            0.5 * self.rng.normal(size=(len(self.blocks), k)) + 0.6 * depth[:, None] * self._relation[0]
        )
        weights *= 1.3 / weights.sum(1, keepdims=True)
        norms = (0.25 * fade + 0.05) * np.exp(0.3 * self.rng.normal(size=len(depth)) - depth)
        floor = float(0.3 + 0.4 * fade + 0.03 * self.rng.normal())
        return {
            "method": "cagrad",
            "block": "layer",
            "conflict_rate": float(conflict.mean()),
            "cosine": [[round(float(value), 6) for value in row] for row in cosine],
            "cosine_same": floor if self.noise_floor and step % 5 == 0 else None,
            "weights": {
                block: {tag: float(w) for tag, w in zip(self.seen, row, strict=True)}
                for block, row in zip(self.blocks, weights, strict=True)
            },
            "stationarity": {
                **{block: float(n) for block, n in zip(self.blocks, norms, strict=True)},
                "model": float(np.sqrt((norms**2).sum()) * 1.12),
            },
            "norm": {block: float(2 * n) for block, n in zip(self.blocks, norms, strict=True)},
            "conflict": {block: float(c) for block, c in zip(self.blocks, conflict, strict=True)},
            "dropped": [],
        }

    def drawn_record(self, step: int) -> dict[str, Any]:
        """Asked against drawn: the first two languages come twice in every step, and all were asked for alike."""
        places = len(self.seen) + 2
        languages = {
            tag: {
                "asked": 1 / len(self.seen),
                "expected": (2 if i < 2 else 1) / places,
                "drawn": (2 if i < 2 else 1) / places,
                "tokens": 1024 * step * (2 if i < 2 else 1),
                "samples": 4 * step * (2 if i < 2 else 1),
                "epochs": step / 37,
            }
            for i, tag in enumerate(self.seen)
        }
        return {"event": "drawn", "step": step, "presence": "present", "languages": languages}

    def valid_record(self, step: int) -> dict[str, Any]:
        """One pass over the held-out text."""
        tags = [*self.seen, *self.unseen]
        loss = {tag: self._loss(i, step) + 0.15 + 0.3 * (i >= len(self.seen)) for i, tag in enumerate(tags)}
        per_byte = {
            tag: loss[tag] / math.log(2) / float(self._bytes_per_token[i]) for i, tag in enumerate(tags)
        }
        return {
            "event": "valid",
            "step": step,
            "loss": loss,
            "bits_per_byte": per_byte,
            "seen": list(self.seen),
            "unseen": list(self.unseen),
        }
