"""The page on made-up cells: it says what was put in, and no more."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from megatron_moo.experiment.cli import parse_budget
from megatron_moo.experiment.page import write_page
from megatron_moo.experiment.planner import Cell, Planner
from megatron_moo.experiment.results import compare, finished
from megatron_moo.experiment.rows import PRIMARY, ROWS
from megatron_moo.experiment.setting import SEEN
from tests.unit.experiment.made_up import result


def _page(tmp_path: Path, cells: int = 10_000, seeds: int = 10, **changed: float) -> tuple[str, Planner]:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds)
    while len(done) < cells and (cell := planner.next()) is not None:
        found = result(cell)
        if cell.row in changed:
            found["valid"] = {tag: value + changed[cell.row] for tag, value in found["valid"].items()}
        done[cell] = found
    path = tmp_path / "results.md"
    write_page(path, tmp_path, planner, parse_budget("3h"), dict.fromkeys(SEEN, 1000))
    return path.read_text(), planner


def _row(page: str, label: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(("| " + label, "| **" + label)))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_effect_that_was_put_in_comes_out(tmp_path: Path) -> None:
    page, _ = _page(tmp_path)
    text = page.split("## The primary contrast")[1].split("##")[0]
    effect, low, high = (float(x) for x in re.findall(r"[-+]\d\.\d{4}", text)[:3])
    assert low < -0.05 < high or abs(effect + 0.05) < 0.004
    assert low <= effect <= high and "over 10 paired seeds, p = 0.0020. It is better." in text
    cells = _row(page, "mgda, block layer")
    assert cells[2] == "10" and abs(float(cells[4].split()[0]) - 0.2) < 0.01
    assert float(cells[6]) > float(cells[5])  # Holm
    assert "does not test the paper's claims" in page.replace("\n", " ")


def test_a_null_result_is_said(tmp_path: Path) -> None:
    page, planner = _page(tmp_path, **{PRIMARY: 0.05})
    reference = planner.best_baseline()
    assert reference is not None
    primary = next(item for item in compare(planner, reference) if item.row.name == PRIMARY)
    assert primary.seen is not None and abs(primary.seen.mean) < 0.005
    said = "No difference is shown" if primary.seen.p >= 0.05 else "It is "
    assert said in page


def test_a_worse_primary_is_said(tmp_path: Path) -> None:
    page, _ = _page(tmp_path, **{PRIMARY: 0.3})
    assert "It is worse." in page


def test_a_truncated_run_says_which_rows_have_fewer_seeds(tmp_path: Path) -> None:
    _, planner = _page(tmp_path)
    total = len(planner.done)
    page, planner = _page(tmp_path, cells=total - 12)
    short = [row.name for row in ROWS if 0 < len(finished(planner, row)) < 10]
    assert short
    flat = page.replace("\n", " ")
    assert f"Fewer seeds than planned, since the budget was spent: {', '.join(short)}." in flat
    assert "about 12 cells of the plan are not done" in flat
    early, _ = _page(tmp_path, cells=115)
    assert re.search(r"Not run: .*cagrad-bucket.*pcgrad-model", early.replace("\n", " "))


def test_cells_of_an_earlier_protocol_are_told_and_count_for_nothing(tmp_path: Path) -> None:
    page, planner = _page(tmp_path)
    assert "set aside" not in page
    done = dict(planner.done)
    for seed in (1, 2, 3):
        for row, lr in (("mean", 3e-3), (PRIMARY, 6e-3)):
            done[Cell(row, lr, seed)] = result(Cell(row, lr, seed))
    path = tmp_path / "more.md"
    more = Planner(done, 10)
    write_page(path, tmp_path, more, parse_budget("3h"), dict.fromkeys(SEEN, 1000))
    told = path.read_text()
    start = told.index("## A first attempt, set aside")
    assert told[start:].count("| 3 |") == 2
    assert (
        told.split("## The primary contrast")[1].split("##")[0]
        == page.split("## The primary contrast")[1].split("##")[0]
    )


def test_before_the_baselines_are_tuned_nothing_is_reported(tmp_path: Path) -> None:
    page, _ = _page(tmp_path, cells=5)
    assert "nothing is reported" in page and "## The primary contrast" not in page


def test_holm_leaves_the_primary_out(tmp_path: Path) -> None:
    _, planner = _page(tmp_path)
    reference = planner.best_baseline()
    assert reference is not None
    rows = compare(planner, reference)
    primary = next(item for item in rows if item.row.name == PRIMARY)
    assert primary.seen is not None and primary.adjusted == primary.seen.p
    others = [item for item in rows if item.row.name not in (PRIMARY, reference.name)]
    smallest = min(others, key=lambda item: item.seen.p if item.seen else 1.0)
    assert smallest.seen is not None and smallest.adjusted is not None
    assert smallest.adjusted >= min(1.0, len(others) * smallest.seen.p) - 1e-12
