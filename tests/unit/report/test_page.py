"""The page: every language, block and plot; well-formed; nothing from outside; hostile names stay text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_moo.analyze.curves import CURVES
from megatron_moo.buckets.adaptive import layer_of
from megatron_moo.errors import MooError
from megatron_moo.report.page import write_report
from megatron_moo.report.sections.adaptive import layer_of as told_layer_of
from tests.unit.report.fake_beside import write_beside
from tests.unit.report.fake_run import BLOCKS, SEEN, UNSEEN, FakeRun
from tests.unit.report.html import Page

PLOTS = {
    "train-loss",
    "valid-loss-seen",
    "valid-loss-unseen",
    "valid-bits-seen",
    "valid-bits-unseen",
    "loss-table",
    "cosine-matrix",
    "cosine-time",
    "conflict-time",
    "conflict-blocks",
    "weights-time",
    "weights-blocks",
    "stationarity-model",
    "stationarity-blocks",
    "update-norm",
    "token-shares",
    "drawn-table",
    "phases",
    "phases-time",
    "tokens-per-second",
    "grad-norm",
    "lr",
}
# What eval and analyze wrote beside the run; without them one figure of each section says how to get them.
BESIDE = {
    "eval-table",
    "eval-cloze",
    "eval-samples",
    *(f"layer-{name}" for name in (*CURVES, "between")),
    *(
        f"{name}-{i}"
        for i in range(2)
        for name in ("cka-matrix", "retrieval-matrix", "owned", "analysis-table")
    ),
    *(f"plane-{i}-{layer}" for i in range(2) for layer in (0, 1, 2, 4)),
}
ABSENT = {"eval-table", "layer-curves"}
HOSTILE = ("<script>alert('x')</script>", '"><img src=x onerror=alert(1)>', "{{7*7}}", "</script><b>&amp;")
Change = Callable[[dict[str, Any]], None]


def rewrite(run_dir: Path, change: Change) -> Page:
    """Change every line of a run's metrics, then write and parse its page."""
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Page(write_report(run_dir))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_beside(FakeRun().write(tmp_path_factory.mktemp("runs") / "fake"))


@pytest.fixture(scope="module")
def page(run_dir: Path) -> Page:
    return Page(write_report(run_dir))


def test_every_plot_is_there_and_drawn(page: Page) -> None:
    assert set(page.plots()) == PLOTS | BESIDE
    assert "Not measured" not in page.words()
    tables = {plot for plot in page.plots() if "table" in plot}
    for plot in (PLOTS | BESIDE) - tables - {"eval-samples", "token-shares", "phases"}:
        assert any(len(path.get("d", "")) > 20 for path in page.paths(plot)), plot


def test_every_language_and_block_has_its_line(page: Page) -> None:
    assert {line["n"] for line in page.data("train-loss")["s"]} == set(SEEN)
    assert {line["n"] for line in page.data("valid-loss-unseen")["s"]} == set(UNSEEN)
    assert page.data("cosine-matrix")["rows"] == list(SEEN)
    assert page.data("conflict-blocks")["rows"] == list(BLOCKS)
    assert page.data("weights-blocks")["rows"] == list(BLOCKS)
    assert {line["n"] for line in page.data("stationarity-blocks")["s"]} == {*BLOCKS, "whole model"}
    table = page.words("loss-table")
    for tag in (*SEEN, *UNSEEN):
        assert f" {tag} " in table


def test_numbers_on_the_page_are_those_of_the_run(page: Page, run_dir: Path) -> None:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "event" not in record]
    line = next(one for one in page.data("train-loss")["s"] if one["n"] == "ko")
    np.testing.assert_allclose(line["v"], [step["loss"]["ko"] for step in steps], rtol=1e-3)
    average, *single = page.data("cosine-matrix")["frames"]
    assert average["n"] == "mean of the last 6 steps"
    expected = np.mean([step["moo"]["cosine"] for step in steps[-6:]], axis=0)
    np.testing.assert_allclose(average["v"], expected, atol=5e-3)
    assert [frame["n"] for frame in (single[0], single[-2])] == ["step 1", "step 60"]
    assert single[-1]["n"] == "mean of all 60 steps"
    whole = np.mean([step["moo"]["cosine"] for step in steps], axis=0)
    np.testing.assert_allclose(single[-1]["v"], whole, atol=5e-3)
    norms = np.array([list(step["moo"]["norm"].values()) for step in steps])
    drawn = next(one for one in page.data("update-norm")["s"] if one["n"] == "whole model")
    np.testing.assert_allclose(drawn["v"], np.linalg.norm(norms, axis=1), rtol=1e-2)
    weights = np.mean(
        [[list(w.values()) for w in step["moo"]["weights"].values()] for step in steps[-6:]], axis=0
    )
    np.testing.assert_allclose(page.data("weights-blocks")["frames"][0]["v"], weights, rtol=1e-2)
    conflict = [[step["moo"]["conflict"][block] for step in steps] for block in BLOCKS]
    np.testing.assert_allclose(page.data("conflict-blocks")["frames"][0]["v"], conflict, rtol=1e-2, atol=1e-9)
    tokens = {tag: sum(step["tokens"][tag] for step in steps) for tag in SEEN}
    share = 100 * tokens["en"] / sum(tokens.values())
    assert f"{share:.1f} % {tokens['en']:,}" in re.sub(r"\s+", " ", page.words("token-shares"))


def test_asked_and_drawn_stand_side_by_side(page: Page) -> None:
    """Two of fourteen come twice in sixteen places: 12.5 % drawn and expected where 7.1 % were asked for."""
    words = page.words("drawn-table")
    assert " en 7.1 % 12.5 % 12.5 % 122,880 480 1.62 fr 7.1 % 12.5 % 12.5 % " in words
    assert " ru 7.1 % 6.2 % 6.2 % 61,440 240 1.62 " in words
    assert "every objective in every step" in words
    assert "text that repeats more than 4 times in this run: sw 6.1x." in page.words()


def test_bits_per_byte_are_in_the_headline(page: Page, run_dir: Path) -> None:
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record.get("event") == "valid"][-1]["bits_per_byte"]
    worst = max(SEEN, key=lambda tag: last[tag])
    assert f"Worst language, seen {last[worst]:.3f} {worst}, bits per byte" in page.words()
    # The tile, the losses, and the evaluation.
    assert page.words().count("comparable between models, not between scripts") == 3
    assert f"→ {np.mean([last[tag] for tag in SEEN]):.3f} held-out, mean of 14" in page.words()


def test_what_adaptive_blocks_split_and_merged(tmp_path: Path) -> None:
    modules = [
        "embedding",
        *(f"decoder.layers.{i}.{part}" for i in range(3) for part in ("attn", "mlp")),
        "final_norm",
    ]

    def event(step: int, *groups: tuple[str, int, int]) -> dict[str, Any]:
        return {"event": "blocks", "step": step, "groups": {name: modules[a:b] for name, a, b in groups}}

    first = event(
        4, ("embedding", 0, 1), ("decoder.layers.0.attn", 1, 2), ("decoder.layers.0.mlp", 2, 3),
        ("decoder.layers.1.attn..decoder.layers.2.mlp", 3, 7), ("head", 7, 8),
    )  # fmt: skip
    second = event(
        8, ("embedding", 0, 1), ("decoder.layers.0.attn", 1, 2), ("decoder.layers.0.mlp", 2, 3),
        ("decoder.layers.1", 3, 5), ("decoder.layers.2", 5, 7), ("head", 7, 8),
    )  # fmt: skip
    given_up = event(8, ("all", 0, 8))
    run = FakeRun(steps=10, finished=False).write(tmp_path / "run")
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.get("moo", {}).update(block="auto")
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = Page(write_report(run)).words("blocks-changed")
    assert words == "Blocks split and merged No block was split or merged up to step 10."
    more = [first, given_up, {"event": "resume", "step": 6}, second]
    path.write_text(path.read_text() + "".join(json.dumps(line) + "\n" for line in more))
    page = Page(write_report(run))
    _, *rows = (
        ["".join(cell.itertext()) for cell in row] for row in page.plots()["blocks-changed"].iter("tr")
    )
    assert rows == [
        ["4", "split", "decoder.layers.0", "decoder.layers.0.attn, decoder.layers.0.mlp", "5"],
        [
            "4",
            "merged",
            "decoder.layers.1, decoder.layers.2",
            "decoder.layers.1.attn..decoder.layers.2.mlp",
            "5",
        ],
        [
            "8",
            "split",
            "decoder.layers.1.attn..decoder.layers.2.mlp",
            "decoder.layers.1, decoder.layers.2",
            "6",
        ],
    ]
    assert all(layer_of(name) == told_layer_of(name) for name in modules)


def test_a_run_that_was_stopped_early_says_why(tmp_path: Path) -> None:
    path = FakeRun(steps=20).write(tmp_path / "run") / "metrics.jsonl"
    *lines, end = path.read_text().splitlines()
    stopped = {"event": "stopped", "step": 20, "watch": "sw", "patience": 3, "best": 2.5}
    path.write_text("\n".join([*lines, json.dumps(stopped), end]) + "\n")
    words = Page(write_report(path.parent)).words()
    assert "Stopped early at step 20: sw did not improve on 2.5000 bits per byte in 3 validations" in words


def test_line_ends_where_its_value_is(page: Page) -> None:
    """A drawn line against its number: the last point's height on the axis whose ticks are on the page."""
    path = next(
        p for p in page.paths("train-loss") if p.get("class", "").startswith("ln") and p.get("data-n") == "fr"
    )
    x, y = map(float, path.get("d", "").split("L")[-1].split())
    ticks = {}
    for span in page.plots()["train-loss"].iter("span"):
        if span.get("class") == "yt":
            ticks[float(span.text or "")] = float(re.findall(r"top:([\d.]+)%", span.get("style", ""))[0])
    (low, low_top), (high, high_top) = min(ticks.items()), max(ticks.items())
    value = low + (y / 10 - low_top) * (high - low) / (high_top - low_top)
    line = next(one for one in page.data("train-loss")["s"] if one["n"] == "fr")
    assert value == pytest.approx(line["v"][-1], abs=0.01)
    assert x == 1000


def test_nothing_is_loaded_from_outside(page: Page) -> None:
    assert re.findall(r"""(?:src|href|action)\s*=\s*["']?(?!#|data:)[^\s"'>]+""", page.text) == []
    assert "@import" not in page.text
    assert re.findall(r"https?://(?!www\.w3\.org/)", page.text) == []
    assert len(page.text) < 600_000


def test_recipe_and_noise_floor_are_shown(page: Page, run_dir: Path) -> None:
    assert "moo-option: [c=0.5]" in page.words()
    assert "megatron-core: 0.19.2" in page.words()
    assert "same language 0." in page.words("cosine-matrix")
    assert {line["n"] for line in page.data("cosine-time")["s"]} == {"pairs, median", "same language"}


def test_without_a_noise_floor_the_page_says_so(tmp_path: Path) -> None:
    page = Page(write_report(FakeRun(noise_floor=False).write(tmp_path / "run")))
    assert "did not measure the same-language cosine" in page.words("cosine-matrix")
    assert [line["n"] for line in page.data("cosine-time")["s"]] == ["pairs, median"]


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    run = FakeRun(seen=HOSTILE[:3], unseen=HOSTILE[3:], blocks=HOSTILE, steps=12)
    path = run.write(tmp_path / "run <b>") / "recipe.yaml"
    path.write_text("x: </pre><script>alert(1)</script>\n")
    page = Page(write_report(path.parent))
    plain = Page(
        write_report(
            FakeRun(seen=SEEN[:3], unseen=UNSEEN[:1], blocks=BLOCKS[:4], steps=12).write(tmp_path / "p")
        )
    )
    for tag in ("script", "img", "b", "pre", "span", "figure"):
        assert len(list(page.root.iter(tag))) == len(list(plain.root.iter(tag))), tag
    for name in HOSTILE:
        assert name in page.words("loss-table") or name in page.words("conflict-blocks")
    assert [line["n"] for line in page.data("train-loss")["s"]] == list(HOSTILE[:3])
    assert "</pre><script>alert(1)</script>" in page.words()


def test_one_step_two_languages_whole_model(tmp_path: Path) -> None:
    run = FakeRun(seen=("en", "fr"), unseen=(), blocks=("model",), steps=1)
    page = Page(write_report(run.write(tmp_path / "run")))
    assert set(page.plots()) == ABSENT | {plot for plot in PLOTS if not plot.startswith(("valid-", "drawn"))}
    assert "1 block" in page.words()
    assert "NaN" not in page.text


def test_hundred_languages(tmp_path: Path) -> None:
    tags = [f"x{i:02d}-Latn" for i in range(100)]
    run = FakeRun(seen=tags, unseen=("zz",), blocks=BLOCKS[:3], steps=4)
    page = Page(write_report(run.write(tmp_path / "run")))
    assert page.data("cosine-matrix")["rows"] == tags
    assert page.data("weights-time")["rows"] == tags
    assert all(f" {tag} " in page.words("loss-table") for tag in tags)
    assert len(page.text) < 2_000_000


def test_long_runs_are_averaged_and_the_page_says_so(tmp_path: Path) -> None:
    run_dir = FakeRun(seen=("en", "fr"), unseen=(), blocks=BLOCKS[:2], steps=801).write(tmp_path / "run")
    page = Page(write_report(run_dir))
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()][1:-1]
    line = page.data("train-loss")["s"][0]
    assert len(line["v"]) == 134  # 801 steps, six a point
    assert line["v"][0] == pytest.approx(np.mean([step["loss"]["en"] for step in steps[:6]]), rel=1e-3)
    assert line["v"][-1] == pytest.approx(np.mean([step["loss"]["en"] for step in steps[-3:]]), rel=1e-3)
    assert "Each point is the mean of 6 steps." in page.words("train-loss")


def test_losses_that_are_not_finite_are_named_first(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        if record.get("step") in (17, 18) and "event" not in record:
            record["loss"]["sw"] = math.nan
            record["moo"]["dropped"] = ["sw"]

    page = rewrite(FakeRun().write(tmp_path / "run"), change)
    assert "The training loss of sw was not finite at steps 17, 18." in page.words()
    assert "The gradient of sw was dropped at steps 17, 18." in page.words()
    assert set(page.plots()) == PLOTS | ABSENT


def test_missing_fields_leave_a_reason_in_place(tmp_path: Path) -> None:
    def change(record: dict[str, Any]) -> None:
        for name in ("moo", "phase_s", "lr", "tokens", "bits_per_byte"):
            record.pop(name, None)

    page = rewrite(FakeRun().write(tmp_path / "run"), change)
    assert set(page.plots()) == PLOTS | ABSENT
    for plot in ("cosine-matrix", "conflict-blocks", "weights-time", "stationarity-model", "phases", "lr"):
        assert "Not measured in this run." in page.words(plot)
    assert "Not measured" not in page.words("train-loss")


def test_run_without_a_step_is_told(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"event": "start", "train_iters": 5}\n')
    with pytest.raises(MooError, match="no training step yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_state_of_the_run(tmp_path: Path) -> None:
    page = Page(write_report(FakeRun(finished=False, steps=5).write(tmp_path / "run")))
    assert "Step 5 of 5, still running or interrupted" in page.words()
