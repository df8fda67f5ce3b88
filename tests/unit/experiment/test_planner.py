"""The order of cells on made-up results, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from megatron_moo.errors import MooError
from megatron_moo.experiment.cli import parse_budget
from megatron_moo.experiment.planner import Cell, Planner, score
from megatron_moo.experiment.rows import (
    BY_NAME,
    CONTENDERS,
    LATER,
    LATER_SEEDS,
    LR_GRID,
    PRIMARY,
    ROWS,
    TUNING_SEEDS,
    report_seeds,
    weight_candidates,
)  # fmt: skip
from megatron_moo.experiment.runner import append_cell, read_cells
from megatron_moo.experiment.setting import SEEN, UNSEEN
from tests.unit.experiment.made_up import best_lr, result


def _run(planner: Planner, done: dict[Cell, dict[str, Any]], cells: int) -> list[Cell]:
    order = []
    for _ in range(cells):
        cell = planner.next()
        if cell is None:
            break
        done[cell] = result(cell)
        order.append(cell)
    return order


def test_every_cell_once_and_all_rows_get_all_seeds() -> None:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=3)
    order = _run(planner, done, 10_000)
    assert planner.next() is None and planner.left() == 0
    assert len(set(order)) == len(order)
    for row in ROWS:
        reported = [cell for cell in order if cell.row == row.name and cell.seed not in TUNING_SEEDS]
        assert tuple(sorted(cell.seed for cell in reported)) == report_seeds(3)
        if not row.weights:
            assert {cell.lr for cell in reported} == {best_lr(row.name)}


def test_the_number_of_cells_left_is_right_from_the_start() -> None:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=2)
    told = planner.left()
    assert len(_run(planner, done, 10_000)) == told


def test_a_truncated_budget_has_whole_pairs_of_the_primary_contrast() -> None:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=10)
    order = _run(planner, done, 10_000)
    best = planner.best_baseline()
    assert best is not None
    reported = [cell for cell in order if cell.seed not in TUNING_SEEDS]
    first = next(i for i, cell in enumerate(order) if cell.row == LATER[0])
    before = {cell for cell in order[:first] if cell.seed not in TUNING_SEEDS}
    for name in (PRIMARY, best.name, "mean", "placebo"):
        assert sum(cell.row == name for cell in before) == 10
    # The other rows come one by one, each with enough seeds for an interval before the next is tuned.
    second = next(i for i, cell in enumerate(order) if cell.row == LATER[1])
    assert sum(c.row == LATER[0] and c.seed not in TUNING_SEEDS for c in order[:second]) == LATER_SEEDS
    # Wherever it stops, the two sides of the contrast differ by one seed at most.
    for stop in range(len(reported)):
        counts = [sum(c.row == name for c in reported[:stop]) for name in (PRIMARY, best.name)]
        assert abs(counts[0] - counts[1]) <= 1


def test_tuning_never_touches_reported_seeds_and_tries_the_better_two_again() -> None:
    assert not set(TUNING_SEEDS) & set(report_seeds(20))
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=2)
    order = _run(planner, done, 10_000)
    losses = {lr: score(result(Cell("mean", lr, TUNING_SEEDS[0]))) for lr in LR_GRID}
    for seed in TUNING_SEEDS[1:]:
        again = [cell.lr for cell in order if cell.row == "mean" and cell.seed == seed]
        assert set(again) == set(sorted(LR_GRID, key=losses.__getitem__)[:2])
        assert not [cell for cell in order if cell.row not in CONTENDERS and cell.seed == seed]


def test_the_pick_is_the_best_mean_over_the_tuning_seeds() -> None:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=1)
    table = {1.5e-3: [2.0, 2.3, 2.3, 2.3], 3e-3: [2.1, 2.1, 2.1, 2.1], 6e-3: [2.5, 1.0, 1.0, 1.0]}
    for lr, values in table.items():
        for seed, value in zip(TUNING_SEEDS, values, strict=True):
            done[Cell("mean", lr, seed)] = {"tune": dict.fromkeys((*SEEN, *UNSEEN), value)}
    found = planner.tuned(BY_NAME["mean"])
    # 6e-3 is not among the better two of the first seed.
    assert found is not None and found == (pytest.approx(2.1), 3e-3, 0)


def test_a_diverged_learning_rate_is_never_picked() -> None:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=1)
    row = BY_NAME["mgda-layer"]
    for lr, value in zip(LR_GRID, (float("nan"), 3.0, 2.9), strict=True):
        cell = Cell(row.name, lr, TUNING_SEEDS[0])
        done[cell] = {"tune": dict.fromkeys((*SEEN, *UNSEEN), value)}
    assert planner.pick(row) == (LR_GRID[2], 0)


def test_the_best_baseline_is_a_baseline() -> None:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds=1)
    assert planner.best_baseline() is None
    _run(planner, done, 10_000)
    best = planner.best_baseline()
    assert best is not None and best.baseline
    assert {row.name for row in ROWS} == {*LATER, *CONTENDERS}
    tuned = {row.name: planner.tuned(row) for row in ROWS if row.baseline}
    assert best.name == min(tuned, key=lambda name: tuned[name] or (9.0, 0.0, 0))


def test_candidates_of_fixed_weights_are_weights() -> None:
    candidates = weight_candidates(len(SEEN))
    assert candidates[0] == pytest.approx([1 / 6] * 6)
    assert len(set(candidates)) == len(candidates)
    for weights in candidates:
        assert min(weights) > 0 and sum(weights) == pytest.approx(1.0, abs=1e-3)


def test_cells_survive_a_cut_line_and_another_setting(tmp_path: Path) -> None:
    one, two = Cell("mean", 1e-3, 1), Cell("mean", 1e-3, 2)
    append_cell(tmp_path, "aaa", one, {"tune": {}})
    append_cell(tmp_path, "bbb", two, {"tune": {}})
    with (tmp_path / "cells.jsonl").open("a") as out:
        out.write('{"fingerprint": "aaa", "cell": {"row"')
    assert set(read_cells(tmp_path, "aaa")) == {one}
    append_cell(tmp_path, "aaa", two, {"tune": {}})
    assert set(read_cells(tmp_path, "aaa")) == {one, two}
    assert read_cells(tmp_path / "nowhere", "aaa") == {}


@pytest.mark.parametrize(
    ("text", "minutes", "seeds"), [("30m", 30, 5), ("3h", 180, 10), ("overnight", 600, 20), ("70m", 70, 10)]
)
def test_budgets(text: str, minutes: float, seeds: int) -> None:
    budget = parse_budget(text)
    assert (budget.minutes, budget.seeds) == (minutes, seeds)


@pytest.mark.parametrize("text", ["", "3", "0m", "three hours", "-3h"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(MooError, match="no budget"):
        parse_budget(text)
