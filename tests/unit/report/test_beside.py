"""Evaluation and representations on a run's page: the numbers, how to get them, and files that are broken."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_moo.report.beside import read_beside
from megatron_moo.report.page import write_report
from tests.unit.report.fake_beside import TAGS, analysis, evaluation, write_beside
from tests.unit.report.fake_run import FakeRun
from tests.unit.report.html import Page


def small(folder: Path, **words: Any) -> Path:
    return FakeRun(
        seen=("en", "de"), unseen=("ko",), blocks=("a", "b"), steps=12, eval_every=6, **words
    ).write(folder)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(write_beside(small(tmp_path_factory.mktemp("runs") / "fake"), step=8)))


def test_evaluation_has_its_numbers(page: Page) -> None:
    assert " de seen 3.0000 2.5000 14.8 4 0.400 0.200 to 0.600 0.300 " in page.words("eval-table")
    assert "windows of 128 tokens" in page.words("eval-table")
    rows = {row["n"]: row["s"] for row in page.data("eval-cloze")["forest"]}
    assert rows["ko"] == [["ko", "0.450", "0.200 … 0.600"]]
    assert "first words in en and <b>then</b>" in page.words("eval-samples")
    assert "checkpoint of step 8; the run has gone on to step 12 since." in page.words()


def test_the_same_text_is_what_compares_between_scripts(tmp_path: Path) -> None:
    run_dir = write_beside(small(tmp_path / "mine"))
    told = evaluation(TAGS)
    told["relative_to"] = "en"
    for i, item in enumerate(told["languages"].values()):
        item["relative"] = 1 + 0.25 * i
    (run_dir / "eval.json").write_text(json.dumps(told))
    layers = analysis("mine", TAGS, 3)
    for layer in layers["models"][0]["layers"]:
        layer["cka_chance"] = 0.1 * layer["layer"]
    for layer in layers["between"]:
        layer["chance"] = 0.2
    (run_dir / "analysis" / "analysis.json").write_text(json.dumps(layers))
    page = Page(write_report(run_dir))
    assert "nats of the text, en = 1" in page.words("eval-table")
    assert " ko unseen 4.0000 3.5000 22.2 4 1.500 " in page.words("eval-table")
    assert "between models, not between scripts" in page.words("eval-table")
    chance = {line["n"]: line["v"] for line in page.data("layer-cka")["s"]}["chance"]
    assert chance == [0.0, 0.1, 0.2]
    assert page.data("layer-between")["s"][1]["v"] == [0.2] * 3


def test_representations_have_their_numbers(page: Page) -> None:
    told = analysis("fake", TAGS, 5, 8)["models"]
    for key in ("silhouette", "owned"):
        data = page.data(f"layer-{key}")
        assert data["x"] == [0, 1, 2, 3, 4]
        for line, model in zip(data["s"], told, strict=False):
            values = [layer.get(key, math.nan) for layer in model["layers"]]
            np.testing.assert_allclose([math.nan if v is None else v for v in line["v"]], values, rtol=1e-2)
    assert [line["n"] for line in page.data("layer-probe")["s"]] == ["fake", "before", "chance"]
    frames = page.data("cka-matrix-0")["frames"]
    matrices = [layer["cka_matrix"] for layer in told[0]["layers"]]
    assert [frame["n"] for frame in frames] == ["mean over layers", *(f"layer {i}" for i in range(5))]
    np.testing.assert_allclose(frames[0]["v"], np.mean(matrices, axis=0), rtol=1e-2)
    np.testing.assert_allclose(frames[3]["v"], matrices[2], rtol=1e-2)
    assert page.data("owned-0")["frames"][0]["v"] == [[1 + j, 2 + j, 3 + j, 4 + j] for j in range(3)]
    assert page.data("layer-between")["s"][0]["v"] == [1.0, 0.9, 0.8, 0.7, 0.6]
    assert len(page.paths("plane-1-4")) == 3
    assert page.paths("plane-1-4")[0].get("d", "").count("M") == 12
    axis = next(e for e in page.plots()["layer-cka"].iter("div") if e.get("class") == "xs")
    assert axis.get("data-axis") == "layer"


def test_absent_files_say_how_to_get_them(tmp_path: Path) -> None:
    page = Page(write_report(small(tmp_path / "mine")))
    assert "Not measured for this run. “megatron-moo eval runs/mine” writes eval.json" in page.words(
        "eval-table"
    )
    assert "“megatron-moo analyze runs/mine --text FOLDER”" in page.words("layer-curves")
    assert "“megatron-moo report runs/mine” then shows it here" in page.words("layer-curves")


BROKEN = (
    "",
    "{",
    "[]",
    "3",
    '{"languages": 3, "layers": "x"}',
    '{"models": [{}], "languages": {"en": 1}}',
    "[" * 9000,
)
OTHER_KINDS = (
    ("2.0", '"x"'),
    ("[0.2, 0.6]", "[0.2]"),
    ("null", "[]"),
    ('"cloze": {', '"cloze": 5, "c": {'),
    ('"sample": {', '"sample": [], "s": {'),
    ('"plane": [', '"plane": 0, "p": ['),
    ('"cka_matrix": [', '"cka_matrix": [[1], '),
    ('"owned_by": {', '"owned_by": 1, "o": {'),
    ('"chance": {', '"chance": 7, "k": {'),
    ('"layer": ', '"number": '),
    ('"cka_by": {', '"cka_by": 1, "o": {'),
)


@pytest.mark.parametrize("text", BROKEN)
def test_broken_files_are_told_and_the_page_stands(tmp_path: Path, text: str) -> None:
    run_dir = small(tmp_path / "mine")
    (run_dir / "analysis").mkdir()
    for path in (run_dir / "eval.json", run_dir / "analysis" / "analysis.json"):
        path.write_text(text)
    assert set(read_beside(run_dir).trouble) == {"eval.json", "analysis.json"}
    page = Page(write_report(run_dir))
    assert "eval.json could not be read: it" in page.words("eval-table")
    assert "analysis/analysis.json could not be read: it" in page.words("layer-curves")


def test_every_value_may_be_of_another_kind(tmp_path: Path) -> None:
    """Each number, list and mapping of the files in turn is something else: a page comes out, and strict HTML."""
    run_dir = write_beside(small(tmp_path / "mine"), tags=("en", "de"), layers=2)
    whole = {
        "eval.json": evaluation(("en", "de")),
        "analysis/analysis.json": analysis("mine", ("en", "de"), 2),
    }
    for old, new in OTHER_KINDS:
        changed = {name: json.dumps(told).replace(old, new) for name, told in whole.items()}
        assert any(new in text for text in changed.values()), old
        for name, text in changed.items():
            (run_dir / name).write_text(text)
        Page(write_report(run_dir))


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script>"
    run_dir = write_beside(small(tmp_path / "mine"), tags=(bad, '"><img src=x>'), layers=2)
    page = Page(write_report(run_dir))
    assert not list(page.root.iter("img"))
    assert bad in page.words("eval-table")
    assert page.data("cka-matrix-0")["rows"][0] == bad
