"""The comparison's page: its numbers against sums over the runs' files, and what it says of unequal runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_moo.analyze.curves import CURVES
from megatron_moo.cli import main
from megatron_moo.errors import MooError
from megatron_moo.evaluate.compare import compare, read_run
from megatron_moo.evaluate.compare_page import page_path, write_comparison
from tests.unit.evaluate.paired import write_pairs
from tests.unit.report.fake_beside import write_beside
from tests.unit.report.fake_run import BLOCKS, SEEN, UNSEEN, FakeRun
from tests.unit.report.html import Page

PLOTS = {
    "forest-0", "difference-table", "bits-languages", "bits-panels", "bits-table", "train-curve", "seen-curve",
    "unseen-curve", "difference-curve", "conflict-time", "cosine-time", "conflict-blocks", "token-shares",
    "tokens-table", "recipes-table", "versions-table", "runs-table", "eval-table", "eval-cloze", "layers-table",
    *(f"layer-{name}" for name in CURVES), "cosine-matrix-0", "cosine-matrix-1", "cosine-difference", "conflict-map-0",
    "conflict-map-1", "conflict-map-difference", "weights-time", "weights-blocks-0", "weights-blocks-1",
    "weights-difference", "stationarity-model", "stationarity-blocks-0", "stationarity-blocks-1", "stationarity-end",
}  # fmt: skip
TABLES = {plot for plot in PLOTS if plot.endswith("-table")}


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def change(run: Path, **flags: Any) -> None:
    told = yaml.safe_load((run / "recipe.yaml").read_text())
    told["flags"].update(flags)
    (run / "recipe.yaml").write_text(yaml.safe_dump(told))


def page_of(runs: list[Path], unequal: bool = False) -> Page:
    return Page(write_comparison(compare([read_run(run) for run in runs], unequal=unequal)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs with an evaluation and an analysis beside them; numbers differ by recipe."""
    found = write_pairs(tmp_path_factory.mktemp("runs"))
    for i, run in enumerate(found):
        write_beside(run, tags=("en", "de", "ko", "it"))
        path = run / "eval.json"
        told = json.loads(path.read_text())
        told["languages"]["ko"]["bits_per_byte"] = 3.0 + 0.1 * i
        told["languages"]["ko"]["cloze"]["acc_norm"] = 0.4 + 0.1 * i
        path.write_text(json.dumps(told))
        path = run / "analysis" / "analysis.json"
        told = json.loads(path.read_text())
        for layer in told["models"][0]["layers"]:
            layer["silhouette"] = 0.1 * layer["layer"] + 0.01 * i
        told["models"].reverse()  # the run's own is found by its name
        path.write_text(json.dumps(told))
    return found


@pytest.fixture(scope="module")
def page(runs: list[Path]) -> Page:
    return page_of(runs)


def test_every_plot_is_there_and_drawn(page: Page) -> None:
    assert set(page.plots()) == PLOTS
    assert "Not measured" not in page.words()
    for plot in PLOTS - TABLES:
        assert any(len(path.get("d", "")) > 10 for path in page.paths(plot)), plot
    assert re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!#|data:)[^\s"'>]+""", page.text) == []
    assert re.findall(r"https?://(?!www\.w3\.org/)", page.text) == []
    assert "default-src 'none'" in page.text


def test_differences_are_those_of_the_files(page: Page, runs: list[Path]) -> None:
    last = [[r for r in records(run) if r.get("event") == "valid"][-1]["bits_per_byte"] for run in runs]
    difference = {
        tag: np.array([last[3 + i][tag] - last[i][tag] for i in range(3)]) for tag in (*SEEN, *UNSEEN)
    }
    rows = {row["n"]: row["s"][0] for row in page.data("forest-0")["forest"]}
    assert list(rows) == [*SEEN, *UNSEEN, "mean of seen", "mean of unseen", "worst seen"]
    for tag, values in difference.items():
        assert float(rows[tag][1].replace("−", "-")) == pytest.approx(values.mean(), abs=6e-5)
    seen = np.mean([difference[tag] for tag in SEEN], axis=0)
    assert float(rows["mean of seen"][1].replace("−", "-")) == pytest.approx(seen.mean(), abs=6e-5)
    each = " ".join(f"{value:+.4f}".replace("-", "−") for value in seen)
    assert each in re.sub(r"\s+", " ", page.words("difference-table"))
    assert page.words().index(f"{seen.mean():+.4f}".replace("-", "−")) < page.words().index(
        "Differences Bits"
    )


def test_curves_are_means_over_seeds(page: Page, runs: list[Path]) -> None:
    steps = [[r for r in records(run) if "event" not in r] for run in runs]
    losses = np.array([[np.mean(list(step["loss"].values())) for step in run] for run in steps])
    reference, other = page.data("train-curve")["s"]
    assert (reference["n"], other["n"]) == ("mean", "cagrad")
    np.testing.assert_allclose(reference["v"], losses[:3].mean(0), rtol=1e-3)
    np.testing.assert_allclose(other["hi"], losses[3:].max(0), rtol=1e-2)
    rates = 100 * np.array([[step["moo"]["conflict_rate"] for step in run] for run in steps])
    np.testing.assert_allclose(page.data("conflict-time")["s"][1]["v"], rates[3:].mean(0), rtol=1e-2)
    seen, unseen = page.data("difference-curve")["s"]
    bits = [
        [
            np.mean([r["bits_per_byte"][tag] for tag in UNSEEN])
            for r in records(run)
            if r.get("event") == "valid"
        ]
        for run in runs
    ]
    assert (seen["n"], unseen["n"]) == ("seen", "unseen")
    np.testing.assert_allclose(
        unseen["v"], (np.array(bits[3:]) - np.array(bits[:3])).mean(0), rtol=1e-2, atol=1e-6
    )
    blocks = {row["n"]: row["s"] for row in page.data("conflict-blocks")["forest"]}
    assert list(blocks) == list(BLOCKS)
    at_end = np.mean([[step["moo"]["conflict"]["head"] for step in run[-2:]] for run in steps[:3]])
    assert float(blocks["head"][0][1]) == pytest.approx(at_end, abs=6e-4)


def test_shares_recipes_versions_and_runs(page: Page, runs: list[Path]) -> None:
    share = {row["n"]: row["s"] for row in page.data("token-shares")["forest"]}
    assert share["en"][0][1] == "12.5" and share["ja"][1][1] == "6.2"  # the first two come twice in 16 places
    assert " en 7.1 12.5 40,960 7.1 12.5 40,960 " in page.words("tokens-table")
    assert "moo-method mean cagrad" in page.words("recipes-table")
    assert "seed 1 2 3 1 2 3" in page.words("recipes-table")
    assert "torch 2.13.0 2.13.0" in page.words("versions-table")
    assert all(run.name in page.words("runs-table") for run in runs)
    assert "lr: 0.001" in page.words() and "3 pairs by seed" in page.words()


def moos(runs: list[Path]) -> list[list[dict[str, Any]]]:
    return [[record["moo"] for record in records(run) if "event" not in record] for run in runs]


def test_matrices_of_every_recipe_and_their_difference(page: Page, runs: list[Path]) -> None:
    cosine = np.array([[moo["cosine"] for moo in run] for run in moos(runs)])
    sides = [cosine[:3].mean(0), cosine[3:].mean(0)]
    for i, side in enumerate(sides):
        frames = page.data(f"cosine-matrix-{i}")["frames"]
        assert [frames[0]["n"], frames[-1]["n"]] == ["mean of the last 2 steps", "mean of all 20 steps"]
        assert [frame["n"] for frame in frames[1:-1]][:2] == ["step 1", "step 4"]
        np.testing.assert_allclose(frames[0]["v"], side[-2:].mean(0), atol=1e-3)
        np.testing.assert_allclose(frames[2]["v"], side[3], atol=1e-3)
        np.testing.assert_allclose(frames[-1]["v"], side.mean(0), atol=1e-3)
    frames = page.data("cosine-difference")["frames"]
    np.testing.assert_allclose(frames[0]["v"], (sides[1] - sides[0])[-2:].mean(0), atol=1e-3)
    np.testing.assert_allclose(frames[1]["v"], (sides[1] - sides[0])[0], atol=1e-3)
    pairs = sides[1][-2:].mean(0)[np.triu_indices(len(SEEN), 1)].mean()
    assert f"mean of pairs {pairs:.2f}" in page.words("cosine-matrix-1")
    assert "same language" in page.words("cosine-matrix-1")


def test_conflict_weights_and_stationarity_per_block(page: Page, runs: list[Path]) -> None:
    told = moos(runs)
    conflict = np.array([[[moo["conflict"][block] for block in BLOCKS] for moo in run] for run in told])
    sides = [conflict[:3].mean(0), conflict[3:].mean(0)]
    for i, side in enumerate(sides):
        data = page.data(f"conflict-map-{i}")
        assert data["rows"] == list(BLOCKS) and data["x"] == list(range(1, 21))
        np.testing.assert_allclose(data["frames"][0]["v"], side.T, rtol=1e-2)
    difference = page.data("conflict-map-difference")["frames"]
    np.testing.assert_allclose(difference[0]["v"], (sides[1] - sides[0]).T, atol=1e-3)

    weights = np.array([[[list(moo["weights"][b].values()) for b in BLOCKS] for moo in run] for run in told])
    shares = weights / weights.sum(-1, keepdims=True)
    ends = [shares[:3, -2:].mean((0, 1)), shares[3:, -2:].mean((0, 1))]
    for i, end in enumerate(ends):
        np.testing.assert_allclose(page.data(f"weights-blocks-{i}")["frames"][0]["v"], end, rtol=1e-2)
    np.testing.assert_allclose(
        page.data("weights-difference")["frames"][0]["v"], ends[1] - ends[0], atol=1e-3
    )
    assert "Equal weights would be 0.071 each" in page.words("weights-time")
    assert len(page.plots()["weights-time"].findall(".//div[@class='mini']")) == len(SEEN)

    lines = {line["n"]: line["v"] for line in page.data("stationarity-blocks-1")["s"]}
    assert list(lines) == [*BLOCKS, "whole model"]
    head, whole = (
        np.array([[moo["stationarity"][name] for moo in run] for run in told]) for name in ("head", "model")
    )
    np.testing.assert_allclose(lines["head"], head[3:].mean(0), rtol=1e-2)
    np.testing.assert_allclose(lines["whole model"], whole[3:].mean(0), rtol=1e-2)
    rows = {row["n"]: row["s"] for row in page.data("stationarity-end")["forest"]}
    assert list(rows) == [*BLOCKS, "all blocks", "whole model"]
    assert float(rows["whole model"][0][1]) == pytest.approx(whole[:3, -2:].mean(), abs=6e-4)
    names = [line["n"] for line in page.data("stationarity-model")["s"]]
    assert names == ["mean", "cagrad", "mean, all blocks", "cagrad, all blocks"]


def wilson(share: float, count: int) -> tuple[float, float]:
    """Where the normal test of a share of ``count`` stops rejecting, by bisection."""
    ends = []
    for outside, inside in ((0.0, share), (1.0, share)):
        for _ in range(60):
            middle = (outside + inside) / 2
            rejected = (share - middle) ** 2 > 1.959964**2 * middle * (1 - middle) / count
            outside, inside = (middle, inside) if rejected else (outside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def test_evaluations_and_analyses_beside_the_runs(page: Page) -> None:
    low, high = wilson(0.5, 20)
    assert f"ko seen 4.0000 3.1000 0.500 {low:.3f} to {high:.3f} 4.0000 3.4000 0.800" in page.words(
        "eval-table"
    )
    assert "it unseen 5.0000" in page.words("eval-table") and "mean of 3 seen" in page.words("eval-table")
    cloze = {row["n"]: row["s"] for row in page.data("eval-cloze")["forest"]}
    assert list(cloze) == ["en", "de", "ko", "it (unseen)", "mean of 3 seen", "mean of 1 unseen"]
    assert [side[1] for side in cloze["ko"]] == ["0.500", "0.800"]
    assert cloze["ko"][0][2] == f"{low:.3f} … {high:.3f}"
    assert float(cloze["mean of 3 seen"][0][1]) == pytest.approx((0.35 + 0.4 + 0.5) / 3, abs=6e-4)
    assert cloze["mean of 3 seen"][0][2] == ""  # languages share their items: Wilson's does not hold
    assert "20 items" in page.words("eval-cloze") and "All of step 40, windows of 128 tokens." in page.words()
    reference, other = page.data("layer-silhouette")["s"]
    np.testing.assert_allclose(reference["v"], [0.01, 0.11, 0.21, 0.31, 0.41], rtol=1e-2)
    np.testing.assert_allclose(other["hi"], [0.05, 0.15, 0.25, 0.35, 0.45], rtol=1e-2)
    assert " 4 0.410 0.440 " in page.words("layers-table")
    chance = {line["n"]: line["v"] for line in page.data("layer-probe")["s"]}["chance"]
    assert chance == [0.25] * 5
    assert "DO NOT COMPARE" not in page.words()


def tell(path: Path, **words: Any) -> None:
    """Put words into a file of ``eval`` or into the first model of one of ``analyze``."""
    told = json.loads(path.read_text())
    (told["models"][0] if "models" in told else told).update(words)
    path.write_text(json.dumps(told))


def test_evaluations_that_do_not_compare(tmp_path: Path) -> None:
    few: dict[str, Any] = {"seen": ("en", "de"), "unseen": ("ko",), "steps": 4, "seeds": (1, 2)}
    runs = write_pairs(tmp_path, **few)
    words = page_of(runs).words()
    assert "None of the runs was evaluated: “megatron-moo eval runs/mean-1” and so on" in words
    assert (
        "None of the runs was analysed: “megatron-moo analyze runs/mean-1 --text FOLDER” and so on" in words
    )
    write_beside(runs[0], tags=("en", "de"))
    words = page_of(runs).words()
    assert "Not evaluated: mean-2, cagrad-1, cagrad-2." in words
    assert "Not analysed: mean-2, cagrad-1, cagrad-2." in words
    write_beside(runs[2], tags=("en", "de"))
    evals, analyses = (
        [run / name for run in (runs[0], runs[2])] for name in ("eval.json", "analysis/analysis.json")
    )
    for one in (*evals, *analyses):
        tell(one, text="aa", windows=64, items_hash="11", tokens=32)
    assert "DO NOT COMPARE" not in page_of(runs).words()
    tell(analyses[1], text="bb", tokens=64)
    assert "analysed with different texts and numbers of tokens a sentence." in page_of(runs).words()
    tell(evals[1], text="bb", items_hash="22")
    words = page_of(runs).words()
    assert "DO NOT COMPARE: the runs were evaluated with different texts." in words
    assert "DO NOT COMPARE: the runs' cloze asked different items." in words
    tell(evals[0], bos=[])
    tell(evals[1], text="aa", bos=["<s>"])
    assert "with different tokens before the text." in page_of(runs).words()
    tell(evals[1], bos=[])
    tell(evals[1], text=None, windows=32)
    words = page_of(runs).words()
    assert "evaluated with different numbers of windows. On which text is not told" in words
    assert "may differ: cagrad-1." in words
    told = json.loads(evals[1].read_text())
    told["languages"]["de"]["bytes"] = 7
    evals[1].write_text(json.dumps(told))
    assert "numbers of windows and numbers of bytes" in page_of(runs).words()
    write_beside(runs[2], tags=("en", "de"), step=30)
    told = json.loads((runs[0] / "eval.json").read_text())
    told["cloze"], told["languages"]["en"]["cloze"] = 7, "none"
    (runs[0] / "eval.json").write_text(json.dumps(told))
    (runs[1] / "eval.json").write_text("[")
    page = page_of(runs)
    assert "DO NOT COMPARE: the runs were evaluated with different steps." in page.words()
    assert "analysed with different steps." in page.words()
    assert "NaN" not in page.text


def test_what_is_not_equal_is_said_first(tmp_path: Path) -> None:
    runs = write_pairs(tmp_path, seeds=(1, 2), seen=("en", "de"), unseen=("ko",), blocks=("a",), steps=6)
    (tmp_path / "cagrad-2" / "recipe.yaml").write_text(
        (tmp_path / "cagrad-2" / "recipe.yaml").read_text().replace("2.13.0", "2.14.0")
    )
    change(tmp_path / "mean-2", seed=7)
    path = tmp_path / "cagrad-1" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line.get("event") == "valid":
            line["bits_per_byte"]["de"] = None
        elif "event" not in line:
            line["tokens"]["en"] += 1
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(MooError, match="unequal tokens"):
        page_of(runs)
    page = page_of(runs, unequal=True)
    words = page.words().split("Seen, difference")[0]
    assert "UNEQUAL tokens: mean-1" in words
    assert "different versions" in words and "torch 2.13.0 2.13.0 | 2.14.0" in page.words("versions-table")
    assert "without a partner of the same seed and left out: cagrad-2, mean-2" in words
    assert "left out: de" in words and "1 pair by seed" in words
    rows = {row["n"]: row["s"][0] for row in page.data("forest-0")["forest"]}
    assert set(rows) == {"en", "ko", "mean of seen", "mean of unseen", "worst seen"}
    assert rows["en"][2] == ""  # one pair has no interval
    assert "NaN" not in page.text


def test_many_recipes_other_blocks_and_hostile_names(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    few: dict[str, Any] = {"seen": ("en", bad), "unseen": ("ko",), "steps": 4, "eval_every": 2, "seeds": (1,)}
    runs = write_pairs(tmp_path, ("mean", "cagrad", "pcgrad", "mgda", "upgrad"), blocks=("model",), **few)
    runs += write_pairs(tmp_path, (bad,), blocks=tuple(f"b{i}" for i in range(60)), **few)
    page = page_of(runs, unequal=True)
    assert [p for p in page.plots() if p.startswith("forest-")] == [f"forest-{i}" for i in range(5)]
    assert not list(page.root.iter("img"))
    assert len(page.data("conflict-blocks")["rows"]) == 61  # more blocks than a forest plot can hold
    assert len(page.data("stationarity-end")["rows"]) == 61
    names = [frame["n"] for frame in page.data("conflict-map-difference")["frames"]]
    assert names == [f"recipe {i} minus recipe 1" for i in (2, 3, 4, 5)]  # the sixth has other blocks
    assert len(page.data("cosine-difference")["frames"]) == 2 * 5  # the averages
    assert bad in page.words("difference-table")


def test_what_one_side_did_not_measure_is_told(tmp_path: Path) -> None:
    """A recipe without MOO's numbers, and another with more objectives than there is room for panels."""
    many = tuple(f"l{i}" for i in range(35))
    runs = write_pairs(tmp_path, seen=many, unseen=(), blocks=("a", "b"), steps=3, eval_every=1, seeds=(1, 2))
    for run in runs:  # validations are what a comparison needs
        lines = [FakeRun(seen=many, unseen=()).valid_record(3), *records(run)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(runs)
    assert page.data("weights-time")["rows"] == list(many) and page.data("weights-time")["cols"] == [
        "mean",
        "cagrad",
    ]
    for run in runs[2:]:
        lines = records(run)
        for line in lines:
            line.pop("moo", None)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(runs)
    for plot in ("cosine-matrix-1", "conflict-map-1", "weights-blocks-1", "stationarity-blocks-1"):
        assert "Not measured" in page.words(plot)
        assert "Not measured" not in page.words(plot.replace("-1", "-0"))
    assert "No recipe has measured cosines" in page.words("cosine-difference")
    assert "No recipe has the blocks" in page.words("conflict-map-difference")
    assert "No recipe has the blocks" in page.words("weights-difference")
    for run in runs[:2]:
        lines = records(run)
        for line in lines:
            line.pop("moo", None)
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(runs)
    assert "Not measured" in page.words("conflict-blocks") and "Not measured" in page.words(
        "stationarity-end"
    )
    assert "NaN" not in page.text


def test_where_the_page_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = write_pairs(tmp_path, seeds=(1, 2), seen=("en", "de"), unseen=("ko",), blocks=("a",), steps=4)
    assert page_path(compare([read_run(run) for run in runs])) == tmp_path / "compare-mean-1-cagrad-1.html"
    assert main(["compare", *map(str, runs)]) == 0
    assert str(tmp_path / "compare-mean-1-cagrad-1.html") in capsys.readouterr().out
    mine = tmp_path / "mine.html"
    assert main(["compare", *map(str, runs), "--reference", str(runs[-1]), "--page", str(mine)]) == 0
    assert "mean against cagrad" in Page(mine).words()
    assert sorted(path.name for path in tmp_path.glob("*.html*")) == [
        "compare-mean-1-cagrad-1.html",
        "mine.html",
    ]
    assert main(["compare", *map(str, runs), "--page", str(tmp_path / "nowhere" / "x.html")]) == 2
    assert "the page cannot be written" in capsys.readouterr().err
    assert main(["compare", *map(str, runs), "--page", str(runs[0])]) == 2  # a folder
    assert not list(tmp_path.glob("*.part"))
