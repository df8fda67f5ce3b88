"""Other settings: cells stay apart from the main ones, a rare language has its share, the page shows what is there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from megatron_moo.experiment.cli import parse_budget
from megatron_moo.experiment.corpus import Text, prepare
from megatron_moo.experiment.page import write_page
from megatron_moo.experiment.page_studies import study_line, study_part
from megatron_moo.experiment.planner import Cell, Planner
from megatron_moo.experiment.rows import BY_NAME, TUNING_SEEDS
from megatron_moo.experiment.runner import append_cell, fingerprint, fingerprints
from megatron_moo.experiment.setting import SEEN, UNSEEN, Setting
from megatron_moo.experiment.studies import STUDIES, Study


def _finished(study: Study) -> Planner:
    done: dict[Cell, dict[str, Any]] = {}
    planner = Planner(done, study.seeds, study.rows, study.tuning)
    while (cell := planner.next()) is not None:
        gain = -0.1 if cell.row == "cagrad-layer" else 0.001 * len(cell.row)
        valid = {tag: 2.0 + gain + 0.01 * (cell.seed % 5) + abs(cell.lr - 3e-3) for tag in (*SEEN, *UNSEEN)}
        done[cell] = {"tune": valid, "valid": valid, "train": [], "seconds": 1.0}
    return planner


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_one_tuning_seed_then_all_seeds_of_all_rows(study: Study) -> None:
    planner = _finished(study)
    assert planner.left() == 0
    assert {cell.seed for cell in planner.done if cell.seed in TUNING_SEEDS} == set(study.tuning)
    for row in study.rows:
        assert (
            sum(cell.row == row.name and cell.seed not in TUNING_SEEDS for cell in planner.done)
            == study.seeds
        )


def test_the_main_cells_keep_their_fingerprint() -> None:
    assert fingerprint(Setting(), "corpus") == fingerprint(replace(Setting(), rare=None), "corpus")
    assert (
        len(
            {fingerprint(study.setting, "corpus") for study in STUDIES.values()}
            | {fingerprint(Setting(), "corpus")}
        )
        == 3
    )


def test_cells_of_other_settings_are_seen_without_their_corpus(tmp_path: Path) -> None:
    assert fingerprints(tmp_path) == set()
    for known in ("aa11", "aa11", "bb22"):
        append_cell(tmp_path, known, Cell("mean", 1e-3, 11), {"seconds": 1.0})
    with (tmp_path / "cells.jsonl").open("a") as out:
        out.write('{"finger')  # a kill cut it off
    assert fingerprints(tmp_path) == {"aa11", "bb22"}


def test_a_rare_language_has_its_share() -> None:
    setting = STUDIES["imbalance"].setting
    assert setting.rare is not None
    rare = sum(setting.rare_sequences(step) for step in range(setting.steps))
    others = setting.steps * (len(SEEN) - 1) * setting.micro_batch
    assert rare / (rare + others) == pytest.approx(setting.rare[1], rel=0.01)
    assert {setting.rare_sequences(step) for step in range(setting.steps)} == {0, 1}
    sizes = setting.train_bytes
    assert sizes[setting.rare[0]] / sum(sizes.values()) == pytest.approx(setting.rare[1], rel=0.01)


def test_the_page_shows_a_study(tmp_path: Path) -> None:
    study = STUDIES["imbalance"]
    path = tmp_path / "results.md"
    main = Planner({}, 5)
    write_page(
        path, tmp_path, main, parse_budget("30m"), dict.fromkeys(SEEN, 1000), [(study, _finished(study))]
    )
    text = path.read_text()
    part = text.split(f"## {study.title}")[1].split("\n## ")[0]
    line = next(line for line in part.splitlines() if "**cagrad, block layer**" in line)
    assert line.count("[-0.10") == 3 and "| 0.031 |" in line  # six pairs of one sign: 2 / 2^6
    assert f"| {(len(study.rows) - 1) * 2 / 2**6:.3f} |" in line  # Holm over all rows of the study
    flat = part.replace("\n", " ")
    assert "this part explores" in flat and "over 6 pairs, p = 0.031. It is better.**" in flat
    assert "Holm's family is the 9 planned rows. With 6 pairs p cannot be below 0.031, and Holm's not" in flat
    assert "log 256 = 5.545" in flat
    write_page(
        path,
        tmp_path,
        main,
        parse_budget("30m"),
        dict.fromkeys(SEEN, 1000),
        [(study, Planner({}, 6, study.rows))],
    )
    assert study.title not in path.read_text()


def test_a_study_names_diverged_cells_and_how_large_its_model_is(tmp_path: Path) -> None:
    study = STUDIES["larger"]
    planner = _finished(study)
    cell = next(cell for cell in planner.done if cell.row == "cagrad-model" and cell.seed == 12)
    planner.done[cell]["valid"] = dict.fromkeys((*SEEN, *UNSEEN), float("nan"))
    path = tmp_path / "results.md"
    write_page(
        path, tmp_path, Planner({}, 5), parse_budget("30m"), dict.fromkeys(SEEN, 1000), [(study, planner)]
    )
    text = " ".join(path.read_text().split())
    assert "`cagrad-model` seed 12. Such cells are in no mean" in text
    assert f"({study.setting.parameters() / 1000:.0f} thousand parameters, 4.9 times as many)" in text


def test_a_later_placebo_has_a_contrast_of_its_own(tmp_path: Path) -> None:
    study = STUDIES["placebo"]
    assert fingerprint(study.setting, "corpus") == fingerprint(
        Setting(), "corpus"
    )  # cells of the main comparison count
    planner = _finished(study)
    text = study_part(study, planner)
    assert (
        "**`placebo-pcgrad` minus `pcgrad-layer`, seen: " in text and "Its one contrast stands above." in text
    )
    assert study_line(study, planner) in " ".join(text.split())
    assert "gains over `mean`" not in text
    for cell, result in planner.done.items():
        if cell.row == "placebo-pcgrad":
            result["valid"] = {tag: value - 0.5 - cell.seed / 1000 for tag, value in result["valid"].items()}
    assert "`placebo-pcgrad` gains over `mean` (-0.5" in study_line(study, planner)
    for cell in [cell for cell in planner.done if cell.row == "placebo-pcgrad"]:
        del planner.done[cell]
    assert study_part(study, planner) == "" == study_line(study, planner)


def test_lanes_and_mixed_batches_have_the_same_tokens(tmp_path: Path) -> None:
    """And the rare language's sequences are there in the steps that it is due in."""
    for kind in ("train", "valid"):
        (tmp_path / "source" / kind).mkdir(parents=True)
        for number, tag in enumerate((*SEEN, *UNSEEN)):
            lines = [json.dumps({"id": f"p{page}", "text": chr(97 + number) * 300}) for page in range(20)]
            (tmp_path / "source" / kind / f"{tag}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    setting = replace(STUDIES["imbalance"].setting, steps=10)
    text = Text(prepare(tmp_path / "source", tmp_path / "data", setting), tmp_path / "corpus", setting)
    rare = SEEN.index("ko") * setting.micro_batch
    lanes, mixed = text.lanes(1), text.mixed(1, BY_NAME["proportional"].sampling)
    for step in range(setting.steps):
        one, other = next(lanes)["loss_mask"], next(mixed)["loss_mask"]
        assert one.sum() == other.sum()
        there = one[rare : rare + setting.micro_batch].any(1).sum()
        assert there == setting.rare_sequences(step)
