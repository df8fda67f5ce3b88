"""Finished cells to the numbers of the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moo.experiment.planner import Planner
from megatron_moo.experiment.rows import LR_GRID, PRIMARY, Row
from megatron_moo.experiment.setting import SEEN, UNSEEN
from megatron_moo.experiment.statistics import Contrast, contrast, holm

Finished = dict[int, Mapping[str, Any]]  # by seed


@dataclass(frozen=True)
class Compared:
    """A row beside the reference.

    Attributes:
        finished: reported cells by seed.
        seen, unseen, worst: paired differences; None for the reference itself and without a common seed.
        adjusted: Holm's p of ``seen`` (the primary's own p for the primary row).
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


def finished(planner: Planner, row: Row) -> Finished:
    """Reported cells of a row by seed."""
    cells = {seed: planner.reported(row, seed) for seed in planner.seeds}
    return {
        seed: planner.done[cell] for seed, cell in cells.items() if cell is not None and cell in planner.done
    }


def mean_loss(result: Mapping[str, Any], tags: Sequence[str]) -> float:
    """Mean over languages of the reported held-out loss, nats per byte."""
    return sum(result["valid"][tag] for tag in tags) / len(tags)


def worst_loss(result: Mapping[str, Any]) -> float:
    """Loss of the worst seen language."""
    return max(result["valid"][tag] for tag in SEEN)


def values(cells: Finished, what: str) -> dict[int, float]:
    """``seen``, ``unseen``, ``worst`` or a language's loss, by seed."""
    if what == "worst":
        return {seed: worst_loss(result) for seed, result in cells.items()}
    tags = {"seen": SEEN, "unseen": UNSEEN}.get(what, (what,))
    return {seed: mean_loss(result, tags) for seed, result in cells.items()}


def paired(cells: Finished, reference: Finished, what: str) -> Contrast | None:
    """Paired by seed, or None without a common seed."""
    if not set(cells) & set(reference):
        return None
    return contrast(values(cells, what), values(reference, what))


def compare(planner: Planner, reference: Row) -> list[Compared]:
    """Every row that has reported cells, beside ``reference``; the primary row is no part of Holm's family."""
    base = finished(planner, reference)
    rows: list[tuple[Row, Finished]] = []
    for row in planner.rows:
        cells = finished(planner, row)
        if cells:
            rows.append((row, cells))
    seen = {
        row.name: paired(cells, base, "seen") for row, cells in rows if row.name != reference.name
    }  # fmt: skip
    family = {name: found.p for name, found in seen.items() if found is not None and name != PRIMARY}
    adjusted = holm(family)
    primary = seen.get(PRIMARY)
    if primary is not None:
        adjusted[PRIMARY] = primary.p
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
