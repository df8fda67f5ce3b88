"""Which cell comes next: tuning, then paired seeds; a truncated budget still answers the primary question.

1. tune the baselines, the primary row and the placebo
2. all reported seeds of the primary row, the best tuned baseline, plain mean and the placebo, seed by seed
3. the other rows one after the other: tuned, and their first six seeds (fewer pairs have no 95 % interval)
4. the remaining seeds of the other rows
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moo.experiment.rows import (
    LATER,
    LATER_SEEDS,
    LR_GRID,
    PRIMARY,
    ROWS,
    TUNING_SEEDS,
    WEIGHT_CANDIDATES,
    Row,
    report_seeds,
)
from megatron_moo.experiment.setting import SEEN

Results = Mapping["Cell", Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """A row, its learning rate, a seed, and the index of the fixed weights (0 for rows without)."""

    row: str
    lr: float
    seed: int
    candidate: int = 0


def score(result: Mapping[str, Any]) -> float:
    """What tuning minimises: mean loss on the tuning half of the seen languages; a diverged run is infinite."""
    value = sum(result["tune"][tag] for tag in SEEN) / len(SEEN)
    return value if value == value else float("inf")


class Planner:
    """The order of cells, and what they say.

    Args:
        done: finished cells; may grow.
        seeds: number of reported seeds.
        rows: which to train.
        tuning: seeds that choose learning rates; the contenders use all of them, the other rows the first.
    """

    def __init__(
        self, done: Results, seeds: int, rows: Sequence[Row] = ROWS, tuning: Sequence[int] = TUNING_SEEDS
    ) -> None:
        self.done, self.seeds, self.rows = done, report_seeds(seeds), tuple(rows)
        self.tuning_seeds = tuple(tuning)
        self._by_name = {row.name: row for row in rows}

    def candidates(self, row: Row) -> list[tuple[float, int]]:
        """(learning rate, weights) that tuning tries; empty while the learning rate of ``mean`` is not known."""
        if not row.weights:
            return [(lr, 0) for lr in LR_GRID]
        chosen = self.pick(self._by_name["mean"])
        return [] if chosen is None else [(chosen[0], index) for index in range(WEIGHT_CANDIDATES)]

    def tuning(self, row: Row) -> Iterator[Cell]:
        """Tuning cells that are known so far."""
        first, *others = self.tuning_seeds
        tried = [Cell(row.name, lr, first, index) for lr, index in self.candidates(row)]
        yield from tried
        if row.contender and tried and all(cell in self.done for cell in tried):
            for cell in sorted(tried, key=lambda cell: score(self.done[cell]))[:2]:
                for seed in others:
                    yield Cell(row.name, cell.lr, seed, cell.candidate)

    def tuned(self, row: Row) -> tuple[float, float, int] | None:
        """(tuning score, learning rate, weights) of the pick, or None while tuning is not complete.

        The score is the mean over the tuning seeds of the row.
        """
        cells = list(self.tuning(row))
        wanted = len(self.candidates(row)) + self._repeats(row)
        if not cells or len(cells) < wanted or not all(cell in self.done for cell in cells):
            return None
        last = [cell for cell in cells if cell.seed == cells[-1].seed]

        def mean(cell: Cell) -> float:
            same = [c for c in cells if (c.lr, c.candidate) == (cell.lr, cell.candidate)]
            return sum(score(self.done[c]) for c in same) / len(same)

        best = min(last, key=mean)
        return mean(best), best.lr, best.candidate

    def _repeats(self, row: Row) -> int:
        return 2 * (len(self.tuning_seeds) - 1) if row.contender else 0

    def pick(self, row: Row) -> tuple[float, int] | None:
        """Learning rate and weights of a row, or None while tuning is not complete."""
        found = self.tuned(row)
        return None if found is None else found[1:]

    def best_baseline(self) -> Row | None:
        """The baseline with the lowest tuning score, or None while one is not tuned."""
        scores = {row.name: self.tuned(row) for row in self.rows if row.baseline}
        known = {name: found for name, found in scores.items() if found is not None}
        if len(known) < len(scores) or not known:
            return None
        return self._by_name[min(known, key=lambda name: known[name][0])]

    def reported(self, row: Row, seed: int) -> Cell | None:
        """The reported cell of a tuned row."""
        chosen = self.pick(row)
        return None if chosen is None else Cell(row.name, chosen[0], seed, chosen[1])

    def next(self) -> Cell | None:
        """The first cell that is not done, or None when all are."""
        return next((cell for cell in self._order() if cell not in self.done), None)

    def left(self) -> int:
        """About how many cells are still to do."""
        tuning = sum(
            max(
                0,
                (WEIGHT_CANDIDATES if row.weights else len(LR_GRID)) + self._repeats(row) - self._tried(row),
            )
            for row in self.rows
        )
        reported = sum(len(self.seeds) - self._finished(row) for row in self.rows)
        return tuning + reported

    def _tried(self, row: Row) -> int:
        return sum(cell.row == row.name and cell.seed in self.tuning_seeds for cell in self.done)

    def _finished(self, row: Row) -> int:
        return sum(self.reported(row, seed) in self.done for seed in self.seeds) if self.pick(row) else 0

    def _order(self) -> Iterator[Cell]:
        contenders = [row for row in self.rows if row.contender]
        for row in contenders:
            yield from self.tuning(row)
        for row in self.rows:
            if row.baseline and not row.contender:
                yield from self.tuning(row)
        best = self.best_baseline()
        if best is None:
            return
        pair = dict.fromkeys((PRIMARY, best.name, "mean", "placebo"))
        yield from self._seeds([self._by_name[name] for name in pair if name in self._by_name], self.seeds)
        known = [name for name in LATER if name in self._by_name]
        known += [name for name in self._by_name if name not in LATER]
        later = [self._by_name[name] for name in known if name not in pair]
        for row in later:
            yield from self.tuning(row)
            yield from self._seeds([row], self.seeds[:LATER_SEEDS])
        yield from self._seeds(later, self.seeds)

    def _seeds(self, rows: Sequence[Row], seeds: Sequence[int]) -> Iterator[Cell]:
        for seed in seeds:
            for row in rows:
                cell = self.reported(row, seed)
                if cell is not None:
                    yield cell
