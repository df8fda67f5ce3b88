"""Finished cells to the numbers of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moo.experiment.planner import Planner
from megatron_moo.experiment.rows import LR_GRID, PRIMARY, Row
from megatron_moo.experiment.setting import SEEN, UNSEEN
from megatron_moo.experiment.statistics import Contrast, contrast, holm, smallest_p

Finished = dict[int, Mapping[str, Any]]  # by seed
# Nats per byte of a guess that gives all 256 bytes the same probability; from NEAR of it on a language counts as one
# that the model knows next to nothing of.
UNIFORM = math.log(256)
NEAR = 0.9


@dataclass(frozen=True)
class Compared:
    """A row beside the reference.

    Attributes:
        finished: reported cells by seed, diverged ones left out.
        seen, unseen, worst: paired differences; None for the reference itself and without a common seed.
        adjusted: Holm's p of ``seen`` over all planned rows (the primary's own p for the primary row).
        edge: whether the picked learning rate is the grid's lowest or highest.
    """

    row: Row
    lr: float
    candidate: int
    finished: Finished
    seen: Contrast | None
    unseen: Contrast | None
    worst: Contrast | None
    adjusted: float | None
    edge: bool


def is_finite(result: Mapping[str, Any]) -> bool:
    """Whether every held-out loss of a cell is a number."""
    return all(math.isfinite(value) for value in result["valid"].values())


def _reported(planner: Planner, row: Row) -> Finished:
    cells = {seed: planner.reported(row, seed) for seed in planner.seeds}
    return {
        seed: planner.done[cell] for seed, cell in cells.items() if cell is not None and cell in planner.done
    }


def finished(planner: Planner, row: Row) -> Finished:
    """Reported cells of a row by seed, without those that diverged."""
    return {seed: result for seed, result in _reported(planner, row).items() if is_finite(result)}


def diverged(planner: Planner, row: Row) -> tuple[int, ...]:
    """Reported seeds of a row whose loss is not a number: no mean can hold them, the page names them."""
    return tuple(seed for seed, result in _reported(planner, row).items() if not is_finite(result))


def near_uniform(cells: Finished) -> tuple[str, ...]:
    """Unseen languages whose mean loss is within 10 % of a uniform guess, or above it."""
    found = {tag: values(cells, tag).values() for tag in UNSEEN}
    return tuple(tag for tag, losses in found.items() if sum(losses) >= NEAR * UNIFORM * len(losses))


def mean_loss(result: Mapping[str, Any], tags: Sequence[str]) -> float:
    """Mean over languages of the reported held-out loss, nats per byte."""
    return sum(result["valid"][tag] for tag in tags) / len(tags)


def worst_loss(result: Mapping[str, Any]) -> float:
    """Loss of the worst seen language."""
    return max(result["valid"][tag] for tag in SEEN)


def values(cells: Finished, what: str | Sequence[str]) -> dict[int, float]:
    """``seen``, ``unseen``, ``worst``, a language's loss or the mean over several languages, by seed."""
    if what == "worst":
        return {seed: worst_loss(result) for seed, result in cells.items()}
    tags = {"seen": SEEN, "unseen": UNSEEN}.get(what, (what,)) if isinstance(what, str) else what
    return {seed: mean_loss(result, tags) for seed, result in cells.items()}


def paired(cells: Finished, reference: Finished, what: str | Sequence[str]) -> Contrast | None:
    """Paired by seed, or None without a common seed."""
    if not set(cells) & set(reference):
        return None
    return contrast(values(cells, what), values(reference, what))


def family(planner: Planner, reference: Row, primary: str | None = PRIMARY) -> int:
    """Tests that Holm's correction counts: every planned row but the reference and the primary, finished or not."""
    return sum(row.name not in (reference.name, primary) for row in planner.rows)


def least_holm(rows: Sequence[Compared], reference: Row, size: int, primary: str | None) -> dict[int, float]:
    """By number of pairs: the smallest adjusted p that rows with so many can have, whatever their effect.

    Only rows with more pairs can have a smaller p and come before them in Holm's order.
    """
    pairs = [
        item.seen.pairs
        for item in rows
        if item.seen is not None and item.row.name not in (reference.name, primary)
    ]
    return {n: min(1.0, (size - sum(m > n for m in pairs)) * smallest_p(n)) for n in sorted(set(pairs))}


def compare(planner: Planner, reference: Row, primary: str | None = PRIMARY) -> list[Compared]:
    """Every row that has reported cells, beside ``reference``.

    Args:
        primary: the row with a contrast of its own, which is no part of Holm's family; None: all rows are.
    """
    base = finished(planner, reference)
    rows: list[tuple[Row, Finished]] = []
    for row in planner.rows:
        cells = finished(planner, row)
        if cells:
            rows.append((row, cells))
    seen = {
        row.name: paired(cells, base, "seen") for row, cells in rows if row.name != reference.name
    }  # fmt: skip
    tested = {name: found.p for name, found in seen.items() if found is not None and name != primary}
    adjusted = holm(tested, family(planner, reference, primary))
    own = None if primary is None else seen.get(primary)
    if primary is not None and own is not None:
        adjusted[primary] = own.p
    found = []
    for row, cells in rows:
        lr, candidate = planner.pick(row) or (float("nan"), 0)
        other = row.name != reference.name
        found.append(
            Compared(
                row,
                lr,
                candidate,
                cells,
                seen.get(row.name),
                paired(cells, base, "unseen") if other else None,
                paired(cells, base, "worst") if other else None,
                adjusted.get(row.name),
                lr in (LR_GRID[0], LR_GRID[-1]),
            )
        )
    return found
