"""The page on made-up cells: it says what was put in, and no more."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from megatron_moo.experiment.cli import parse_budget
from megatron_moo.experiment.page import write_page
from megatron_moo.experiment.page_parts import p_text
from megatron_moo.experiment.page_trial import CLAIMS
from megatron_moo.experiment.planner import Cell, Planner
from megatron_moo.experiment.results import compare, diverged, finished
from megatron_moo.experiment.rows import PRIMARY, ROWS
from megatron_moo.experiment.setting import SEEN, UNSEEN, Setting
from megatron_moo.experiment.statistics import contrast
from tests.unit.experiment.made_up import result

Change = Callable[[Cell, dict[str, float]], dict[str, float]]


@cache
def _plan(seeds: int) -> list[tuple[Cell, dict[str, Any]]]:
    """All cells in the planner's order: it looks at tuning losses only, which no test here changes."""
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, seeds)
    while (cell := planner.next()) is not None:
        done[cell] = result(cell)
    return list(done.items())


def _page(
    tmp_path: Path,
    cells: int = 10_000,
    seeds: int = 10,
    change: Change | None = None,
    **changed: float,
) -> tuple[str, Planner]:
    """The page of a plan that is finished up to ``cells``; ``change`` may turn a cell's losses into others."""
    done: dict[Cell, dict[str, Any]] = {}
    for cell, known in _plan(seeds)[:cells]:
        found = dict(known)
        if cell.row in changed:
            found["valid"] = {tag: value + changed[cell.row] for tag, value in found["valid"].items()}
        if change is not None:
            found["valid"] = change(cell, found["valid"])
        done[cell] = found
    planner = Planner(done, seeds)
    path = tmp_path / "results.md"
    write_page(path, tmp_path, planner, parse_budget("3h"), dict.fromkeys(SEEN, 1000))
    return path.read_text(), planner


def _part(page: str, title: str) -> str:
    """A section in one line, so that a sentence is found wherever it was wrapped."""
    return " ".join(page.split(f"## {title}\n")[1].split("\n## ")[0].split())


def _only(cell: Cell, row: str) -> bool:
    return cell.row == row and cell.seed < 900


def _row(page: str, label: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(("| " + label, "| **" + label)))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_effect_that_was_put_in_comes_out(tmp_path: Path) -> None:
    page, _ = _page(tmp_path)
    text = _part(page, "Verdict")
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
    assert "It is worse.**" in _part(page, "Verdict")


def test_other_rows_that_pass_are_in_the_verdict(tmp_path: Path) -> None:
    page, planner = _page(tmp_path, **{"pcgrad-layer": -0.1})
    reference = planner.best_baseline()
    assert reference is not None
    found = next(item for item in compare(planner, reference) if item.row.name == "pcgrad-layer")
    assert found.seen is not None and found.adjusted is not None and found.adjusted < 0.05
    text = _part(page, "Verdict")
    better = text.split("after Holm's correction: better ")[1].split("; worse ")
    assert f"`pcgrad-layer` {found.seen.mean:+.4f} [" in better[0] and "mgda-layer" in better[1].split(".")[0]
    assert "Only `cagrad-layer` has a placebo" in text


def test_the_verdict_comes_first(tmp_path: Path) -> None:
    page, _ = _page(tmp_path)
    headings = re.findall(r"^## (.*)$", page, re.M)
    assert headings[:3] == ["Verdict", "What was run", "All rows"]
    text = _part(page, "Verdict")
    assert "the plan is complete" in " ".join(page.split())
    assert page.index("**`cagrad-layer` minus the best tuned baseline") < 400
    assert (
        "[smollm2.md](smollm2.md)" in text and "paper's claims" in text and "[The trial](#the-trial)" in text
    )


def test_a_diverged_reported_cell_is_named_and_in_no_number(tmp_path: Path) -> None:
    def lost(cell: Cell, valid: dict[str, float]) -> dict[str, float]:
        return {**valid, "ko": math.nan} if _only(cell, PRIMARY) and cell.seed in (13, 15) else valid

    page, planner = _page(tmp_path, change=lost)
    row = next(row for row in ROWS if row.name == PRIMARY)
    assert diverged(planner, row) == (13, 15) and 13 not in finished(planner, row)
    assert "nan" not in page.lower()
    text = _part(page, "Verdict")
    assert "over 8 paired seeds" in text and "It diverged on seeds 13, 15, so no gain is claimed" in text
    assert "It is better" not in text
    assert "`cagrad-layer` seed 13, 15. Such cells are in no mean" in _part(page, "All rows")


def test_a_row_that_always_diverged_is_not_called_not_run(tmp_path: Path) -> None:
    def lost(cell: Cell, valid: dict[str, float]) -> dict[str, float]:
        return dict.fromkeys(valid, math.nan) if _only(cell, "upgrad-model") else valid

    page, _ = _page(tmp_path, change=lost)
    text = _part(page, "All rows")
    assert "Diverged (the loss is not a number): `upgrad-model` seed 11" in text and "Not run" not in text


def test_holms_family_is_what_was_planned_and_says_what_it_can_show(tmp_path: Path) -> None:
    total = len(_page(tmp_path)[1].done)
    for cells, pairs in ((115, 0), (total - 16 * 4, 6)):
        page, planner = _page(tmp_path, cells=cells)
        reference = planner.best_baseline()
        assert reference is not None
        rows = compare(planner, reference)
        size = len(ROWS) - 2
        tested = [item for item in rows if item.row.name not in (PRIMARY, reference.name)]
        smallest = min(item.seen.p for item in tested if item.seen)
        first = min(tested, key=lambda item: item.seen.p if item.seen else 1.0)
        assert first.adjusted == pytest.approx(min(1.0, size * smallest))  # also while most are not finished
        text = _part(page, "All rows")
        assert f"Holm's family is the {size} planned rows." in text
        if pairs:
            more = sum(item.seen.pairs > pairs for item in tested if item.seen)
            lowest = (size - more) * 2 / 2**pairs
            assert lowest > 0.05
            assert (
                f"p cannot be below 0.031, and Holm's not below {p_text(lowest)}: such a row cannot" in text
            )
            few = sum(item.seen.pairs == pairs for item in tested if item.seen)
            assert f"{few} of them have too few pairs to pass" in _part(page, "Verdict")
        assert "five pairs" not in page


def test_unseen_languages_near_chance_are_told_and_left_out_beside(tmp_path: Path) -> None:
    page, _ = _page(tmp_path)
    assert "Within 10 % of the guess" not in page and "without vi" not in page

    def near(cell: Cell, valid: dict[str, float]) -> dict[str, float]:
        return {**valid, "vi": 5.4 + (0.3 if cell.row == PRIMARY else 0.0) + 0.01 * (cell.seed % 7)}

    page, _ = _page(tmp_path, change=near)
    text = _part(page, "Unseen languages and the worst seen one")
    assert "log 256 = 5.545" in text and "Within 10 % of the guess: vi." in text
    cells = [cell.strip() for cell in text.split("| **cagrad, block layer** |")[1].split("|")]
    assert cells[2].startswith("+0.0") and cells[3].startswith("-0.0")  # the sign is vi's alone
    assert "+0.1000 of it is vi alone, where the model is near a uniform guess (vi 5.4" in _part(
        page, "Verdict"
    )


@pytest.mark.parametrize(
    ("shift", "spread", "ruling"),
    [
        (-0.131, 0.01, "stands"),
        (-0.02, 0.003, "a gain stands, a smaller one"),
        (-0.3, 0.003, "a gain stands, a larger one"),
        (0.0, 0.01, "not shown, and the interval leaves out an effect of that size"),
        (-0.05, 0.3, "not shown, nor is it excluded"),
        (0.05, 0.003, "the opposite is shown"),
    ],
)
def test_the_trials_claim_is_ruled_by_numbers(shift: float, spread: float, ruling: str) -> None:
    each = [shift + spread * step for step in (-1.3, 1.1, -0.7, 0.9, -0.4, 0.3, -0.2, 0.3)]
    found = contrast(dict(enumerate(each)), dict.fromkeys(range(8), 0.0))
    assert CLAIMS[0].ruling(found) == ruling
    few = contrast({1: -0.1, 2: -0.1}, {1: 0.0, 2: 0.0})
    assert CLAIMS[0].ruling(few) == "too few seeds to say" and CLAIMS[0].ruling(None) == "not run"


def test_the_trial_is_answered(tmp_path: Path) -> None:
    page, planner = _page(tmp_path)
    text = _part(page, "The trial")
    reported = {row.name: finished(planner, row) for row in ROWS}
    for row, what, tags, said in (
        (PRIMARY, "seen", SEEN, "-0.131 ± 0.038"), (PRIMARY, "unseen", UNSEEN, "-0.078 ± 0.024"),
        ("mgda-layer", "seen", SEEN, "worse"),
    ):  # fmt: skip
        mean = sum(
            sum(cell["valid"][tag] - reported["mean"][seed]["valid"][tag] for tag in tags) / len(tags)
            for seed, cell in reported[row].items()
        ) / len(reported[row])
        assert f"| `{row}`, {what} | {said} | {mean:+.4f} [" in text
    assert "3 seeds and 100 steps" in text and "| **stands** |" in text
    assert "with one learning rate for both rows" in text


@pytest.mark.parametrize(
    ("primary", "placebo", "said"),
    [
        (-0.05, 0.0, "that part of it is about languages"),
        (-0.05, -0.05, "that the gain is about languages is not shown"),
        (-0.05, -0.1, "the gain is not about languages"),
        (0.0, 0.0, "so there is none to explain."),
        (0.0, -0.1, "The placebo itself gains over `mean`"),
        (0.0, 0.1, "so there is none to explain, and the placebo is worse."),
    ],
)
def test_the_placebo_is_read_beside_the_gain(
    tmp_path: Path, primary: float, placebo: float, said: str
) -> None:
    gain = {PRIMARY: primary, "placebo": placebo, "mean": 0.0}

    def known(cell: Cell, valid: dict[str, float]) -> dict[str, float]:
        # Noise that no seed's pairs share by chance in one direction.
        noise = 0.002 * (-1) ** (cell.seed + list(gain).index(cell.row)) if cell.row in gain else 0.0
        noise *= 1 + cell.seed % 3
        return dict.fromkeys(valid, 2.2 + gain[cell.row] + noise) if cell.row in gain else valid

    page, _ = _page(tmp_path, cells=115, change=known)
    assert said in _part(page, "Verdict") and said in _part(page, "Questions beside it")
    assert "Is the gain about languages?" not in page


def test_the_page_says_what_it_leaves_out(tmp_path: Path) -> None:
    page, _ = _page(tmp_path)
    run = _part(page, "What was run")
    assert "on one fixed set of windows (80 x 48 bytes a language)" in run
    assert (
        f"({Setting().parameters() / 1000:.0f} thousand parameters)" in run
        and "all 2^n patterns of signs" in run
    )
    descent = _part(page, "First-order descent of the applied step")
    assert "Rows of mixed batches are not here" in descent and "Nor is the placebo" in descent
    assert "it takes the learning rate of `mean`" in _part(page, "All rows")


def test_a_truncated_run_says_which_rows_have_fewer_seeds(tmp_path: Path) -> None:
    _, planner = _page(tmp_path)
    total = len(planner.done)
    page, planner = _page(tmp_path, cells=total - 12)
    short = [row.name for row in ROWS if 0 < len(finished(planner, row)) < 10]
    assert short
    flat = page.replace("\n", " ")
    assert f"Fewer seeds than the 10 planned, since the budget was spent: {', '.join(short)}." in flat
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
    assert _part(told, "All rows") == _part(page, "All rows")
    # It stands beside the verdict, with its number, not only at the end of the page.
    point = _part(told, "Verdict").split("**These seeds are a second attempt.**")[1].split(" - ")[0]
    first = contrast(
        *({seed: sum(done[Cell(row, lr, seed)]["valid"][tag] for tag in SEEN) / 6 for seed in (1, 2, 3)}
          for row, lr in ((PRIMARY, 6e-3), ("mean", 3e-3)))
    )  # fmt: skip
    assert f"{first.mean:+.4f}" in point and "over 3 pairs" in point and "was changed after that" in point
    assert "second attempt" not in page


def test_seeds_beyond_the_budget_are_no_first_attempt(tmp_path: Path) -> None:
    _, planner = _page(tmp_path)
    path = tmp_path / "fewer.md"
    write_page(path, tmp_path, Planner(planner.done, 5), parse_budget("30m"), dict.fromkeys(SEEN, 1000))
    assert "set aside" not in path.read_text()


def test_before_the_baselines_are_tuned_nothing_is_reported(tmp_path: Path) -> None:
    page, _ = _page(tmp_path, cells=5)
    assert "nothing is reported" in page and "## Verdict" not in page


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
