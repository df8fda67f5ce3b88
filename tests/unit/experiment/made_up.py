"""Results of cells without training: known effects, the same noise for every row of a seed."""

from __future__ import annotations

from typing import Any

import numpy as np

from megatron_moo.experiment.planner import Cell
from megatron_moo.experiment.rows import BY_NAME, LR_GRID, ROWS
from megatron_moo.experiment.setting import SEEN, UNSEEN

NAMES = [row.name for row in ROWS]
GAIN = {"cagrad-layer": -0.05, "mgda-layer": 0.2}


def best_lr(row: str) -> float:
    """The learning rate that is best for a row here."""
    return LR_GRID[NAMES.index(row) % len(LR_GRID)]


def result(cell: Cell) -> dict[str, Any]:
    """What ``train_cell`` would return, made up."""
    random = np.random.default_rng(cell.seed)
    common = random.normal(0.0, 0.05)
    own = np.random.default_rng([cell.seed, NAMES.index(cell.row), round(cell.lr * 1e6), cell.candidate])
    base = (
        2.2 + common + GAIN.get(cell.row, 0.0) + 0.3 * (cell.lr != best_lr(cell.row)) + 0.02 * cell.candidate
    )
    valid = {tag: base + (2.0 if tag in UNSEEN else 0.0) + own.normal(0, 0.003) for tag in (*SEEN, *UNSEEN)}
    found: dict[str, Any] = {"tune": dict(valid), "valid": valid, "train": [], "seconds": 2.0}
    if BY_NAME[cell.row].batches != "mixed":
        found["conflict"] = {"cosine": 0.02, "cosine_same": 0.3, "conflict": 0.45, "conflict_same": 0.15}
        found["descent"] = {
            "each": [0.03] * len(SEEN), "mean": 0.03, "worst": 0.01, "rising": 0.02, "rising_d": 0.0,
            "languages": cell.row != "placebo",
        }  # fmt: skip
    return found
