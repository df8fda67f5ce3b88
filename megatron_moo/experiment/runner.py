"""Run cells until the plan or the budget is exhausted; every finished cell is kept at once."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.experiment.planner import Cell, Planner
from megatron_moo.experiment.rows import BY_NAME, TUNING_SEEDS, Row, weight_candidates
from megatron_moo.experiment.setting import SEEN, Setting

CELLS = "cells.jsonl"


def fingerprint(setting: Setting, corpus: str) -> str:
    """What cells must agree on to be compared."""
    told = {name: value for name, value in asdict(setting).items() if value is not None}
    text = json.dumps(told, sort_keys=True) + corpus
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_cells(folder: Path, known: str) -> dict[Cell, dict[str, Any]]:
    """Finished cells with the fingerprint ``known``; a line that a kill cut off is left out."""
    path = folder / CELLS
    found: dict[Cell, dict[str, Any]] = {}
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["fingerprint"] == known:
            found[Cell(**record["cell"])] = record["result"]
    return found


def fingerprints(folder: Path) -> set[str]:
    """Of all cells in a folder, so that cells of other settings are not overlooked."""
    path = folder / CELLS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return set(re.findall(r'^{"fingerprint": "([0-9a-f]+)"', text, re.MULTILINE))


def append_cell(folder: Path, known: str, cell: Cell, result: dict[str, Any]) -> None:
    """Add a finished cell, on a line of its own even after a line that was cut off."""
    path = folder / CELLS
    with path.open("a+b") as out:
        if out.tell():
            out.seek(-1, 2)
            if out.read(1) != b"\n":
                out.write(b"\n")
        record = {"fingerprint": known, "cell": asdict(cell), "result": result}
        out.write(json.dumps(record).encode() + b"\n")


def run_cells(
    folder: Path,
    setting: Setting,
    text: Any,
    seeds: int,
    seconds: float,
    rows: Sequence[Row],
    tell: Callable[[str], None],
    tuning: Sequence[int] = TUNING_SEEDS,
) -> Planner:
    """Train cells in the planner's order, in this process.

    Args:
        folder: holds cells.jsonl; a second call goes on.
        text: :class:`~megatron_moo.experiment.corpus.Text`.
        seconds: budget; no cell starts that would not end in time.
        tuning: seeds that choose learning rates.

    Returns:
        the planner with all finished cells.

    Raises:
        MooError: on a machine with a GPU, which the CPU platform must not hide.
    """
    import torch

    from megatron_moo.experiment.cell import train_cell
    from megatron_moo.experiment.engine import Engine

    known = fingerprint(setting, text.corpus.fingerprint)
    done = read_cells(folder, known)
    planner = Planner(done, seeds, rows, tuning)
    started, longest = time.monotonic(), 0.0
    if seconds == 0 or planner.next() is None:
        return planner
    if torch.cuda.is_available():
        raise MooError("it runs on the CPU only", "experiment", "set CUDA_VISIBLE_DEVICES to nothing")
    engine = Engine(setting, text.vocab)
    candidates = weight_candidates(len(SEEN))
    while (cell := planner.next()) is not None:
        spent = time.monotonic() - started
        if spent + longest > seconds:
            tell(f"the budget is spent; about {planner.left()} cells are left, the same command goes on")
            break
        row = BY_NAME[cell.row]
        weights = candidates[cell.candidate] if row.weights else None
        result = train_cell(engine, text, row, cell.lr, cell.seed, weights)
        append_cell(folder, known, cell, result)
        done[cell] = result
        longest = max(longest, time.monotonic() - started - spent)
        seen = sum(result["valid"][tag] for tag in SEEN) / len(SEEN)
        tell(
            f"{cell.row} lr {cell.lr:g} seed {cell.seed}: {seen:.4f} nats per byte on seen languages, "
            f"{result['seconds']:.1f} s; {spent / 60:.1f} min, about {planner.left()} cells left"
        )
    return planner
