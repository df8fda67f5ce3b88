"""Summary numbers against sums done by hand, and the closing table."""

from __future__ import annotations

import io
import json
import math
import statistics
from pathlib import Path

import pytest
from rich.console import Console

from megatron_moo.report.metrics import read_metrics
from megatron_moo.report.summary import end_window, summarize
from megatron_moo.report.table import print_summary
from tests.unit.report.fake_run import SEEN, UNSEEN, FakeRun


def printed(run_dir: Path, width: int = 80) -> str:
    out = io.StringIO()
    print_summary(Console(file=out, width=width), run_dir)
    return out.getvalue()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FakeRun().write(tmp_path_factory.mktemp("runs") / "fake")


@pytest.fixture(scope="module")
def lines(run_dir: Path) -> list[dict[str, object]]:
    """The same file, read without our reader."""
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def steps_of(lines: list[dict[str, object]]) -> list[dict]:
    return [line for line in lines if "event" not in line]


def valids_of(lines: list[dict[str, object]]) -> list[dict]:
    return [line for line in lines if line.get("event") == "valid"]


def test_losses(run_dir: Path, lines: list[dict[str, object]]) -> None:
    summary = summarize(read_metrics(run_dir))
    steps, valids = steps_of(lines), valids_of(lines)
    assert summary.window == 6  # a tenth of 60
    for tag in SEEN:
        assert summary.train[tag].start == steps[0]["loss"][tag]
        assert summary.train[tag].end == pytest.approx(statistics.fmean(s["loss"][tag] for s in steps[-6:]))
        assert summary.held_out[tag].start == valids[0]["loss"][tag]
        assert summary.held_out[tag].end == valids[-1]["loss"][tag]
    unseen = summary.mean(summary.held_out, summary.unseen)
    assert summary.unseen == UNSEEN
    assert unseen.end == pytest.approx(statistics.fmean(valids[-1]["loss"][tag] for tag in UNSEEN))
    bits = summary.mean(summary.bits_per_byte, summary.seen)
    assert bits.end == pytest.approx(statistics.fmean(valids[-1]["bits_per_byte"][tag] for tag in SEEN))
    worst = summary.worst({tag: summary.held_out[tag] for tag in SEEN})
    assert worst is not None
    assert worst[0] == max(SEEN, key=lambda tag: valids[-1]["loss"][tag])


def test_conflict_tokens_and_speed(run_dir: Path, lines: list[dict[str, object]]) -> None:
    summary = summarize(read_metrics(run_dir))
    steps = steps_of(lines)
    assert summary.conflict.end == pytest.approx(
        statistics.fmean(s["moo"]["conflict_rate"] for s in steps[-6:])
    )
    assert summary.conflict.start == pytest.approx(
        statistics.fmean(s["moo"]["conflict_rate"] for s in steps[:6])
    )
    assert summary.tokens["fr"] == sum(s["tokens"]["fr"] for s in steps)
    assert summary.tokens_per_s == pytest.approx(statistics.median(s["tokens_per_s"] for s in steps))
    floor = [s["moo"]["cosine_same"] for s in steps[-6:] if s["moo"]["cosine_same"] is not None]
    assert summary.cosine_same == pytest.approx(statistics.fmean(floor))


@pytest.mark.parametrize(("steps", "window"), [(1, 1), (19, 1), (20, 2), (99, 9), (100, 10), (5000, 10)])
def test_window_is_a_tenth_and_at_most_ten(steps: int, window: int) -> None:
    assert end_window(steps) == window


def test_language_that_is_not_finite_leaves_every_mean(tmp_path: Path) -> None:
    records = [
        {"step": 1, "loss": {"a": 4.0, "b": 6.0}},
        {"step": 2, "loss": {"a": 2.0, "b": math.nan}},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    summary = summarize(read_metrics(tmp_path))
    change = summary.mean(summary.train, ("a", "b"))
    assert (change.start, change.end) == (4.0, 2.0)  # not (5.0, 2.0): both ends speak of the same languages
    assert summary.mean_of(("a", "b")) == "mean of 1 of 2"


def test_language_absent_from_the_last_steps_keeps_its_last_value(tmp_path: Path) -> None:
    records = [{"step": n, "loss": {"a": 1.0} | ({"rare": float(n)} if n < 4 else {})} for n in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    change = summarize(read_metrics(tmp_path)).train["rare"]
    assert (change.start, change.end) == (1.0, 3.0)


def test_table_has_every_language_and_fits_80_columns(run_dir: Path) -> None:
    text = printed(run_dir)
    for tag in (*SEEN, *UNSEEN):
        assert f"\n {tag} " in text
    assert "mean of 14 seen" in text
    assert "mean of 6 unseen" in text
    assert "…" not in text
    summary = summarize(read_metrics(run_dir))
    row = next(line for line in text.splitlines() if line.startswith(" zh-Hans"))
    assert row.split()[1:5] == [
        f"{value:.3f}"
        for change in (summary.train["zh-Hans"], summary.held_out["zh-Hans"])
        for value in (change.start, change.end)
    ]
    assert str(run_dir) in text


def test_table_names_the_worst_languages_and_the_share_that_lies_farthest(
    run_dir: Path, lines: list[dict[str, object]]
) -> None:
    text = printed(run_dir, width=120)
    bits = valids_of(lines)[-1]["bits_per_byte"]
    seen, unseen = (max(tags, key=lambda tag: bits[tag]) for tags in (SEEN, UNSEEN))
    assert f"{seen} (seen, {bits[seen]:.3f} bits per byte), {unseen} (unseen, {bits[unseen]:.3f} bits" in text
    assert "farthest from the law: en, 7.1 % asked, 12.5 % drawn, 12.5 % expected of presence present" in text


def test_table_of_a_hostile_name_and_of_almost_nothing(tmp_path: Path) -> None:
    text = printed(FakeRun(seen=("[bold]x[/bold]", "[/]"), unseen=(), steps=1).write(tmp_path / "hostile"))
    assert "[bold]x[/bold]" in text
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert "run folder" in printed(tmp_path)
