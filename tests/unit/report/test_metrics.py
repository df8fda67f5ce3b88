"""Reading metrics.jsonl: half lines, resumes, missing fields, and following a file that grows."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from megatron_moo.errors import MooError
from megatron_moo.report.metrics import follow, read_metrics
from megatron_moo.report.records import EventRecord, MooRecord, StepRecord, parse_line
from tests.unit.report.fake_run import BLOCKS, SEEN, UNSEEN, FakeRun


def write(run_dir: Path, lines: Iterable[object]) -> Path:
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (run_dir / "metrics.jsonl").write_text(text, encoding="utf-8")
    return run_dir


def step(number: int, loss: float = 1.0) -> dict[str, object]:
    return {"step": number, "loss": {"en": loss}}


def moo_of(record: object) -> MooRecord:
    assert isinstance(record, StepRecord)
    assert record.moo is not None
    return record.moo


def test_reads_every_field_of_a_run(tmp_path: Path) -> None:
    run = FakeRun(steps=12)
    raw = {record["step"]: record for record in FakeRun(steps=12).records() if "event" not in record}
    metrics = read_metrics(run.write(tmp_path / "run"))
    assert [record.step for record in metrics.steps] == list(range(1, 13))
    assert metrics.languages == SEEN
    assert metrics.objectives == SEEN
    assert metrics.blocks == BLOCKS
    assert metrics.finished
    assert metrics.train_iters == 12
    assert metrics.valids[-1].unseen == UNSEEN
    record, source = metrics.steps[4], raw[5]
    assert record.loss == source["loss"]
    assert record.phase_s == source["phase_s"]
    moo = moo_of(record)
    np.testing.assert_array_equal(moo.cosine, source["moo"]["cosine"])
    assert moo.cosine_same == source["moo"]["cosine_same"]
    assert moo.weights[3, 2] == source["moo"]["weights"][BLOCKS[3]][SEEN[2]]
    assert moo.stationarity[1] == source["moo"]["stationarity"][BLOCKS[1]]
    assert moo.stationarity_model == source["moo"]["stationarity"]["model"]


def test_half_written_last_line_is_passed_over(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path, [step(1), step(2), '{"step": 3, "loss": {"en": 1.']))
    assert [record.step for record in metrics.steps] == [1, 2]
    assert metrics.unreadable_lines == 0


def test_unreadable_lines_inside_are_counted(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path, [step(1), "garbage\n", "[1, 2]\n", "\n", step(2)]))
    assert [record.step for record in metrics.steps] == [1, 2]
    assert metrics.unreadable_lines == 2


def test_line_appended_to_a_half_written_one_is_found(tmp_path: Path) -> None:
    metrics = read_metrics(write(tmp_path, [step(1), '{"step": 2, "loss": {"en"', step(2, 7.0), step(3)]))
    assert [record.loss.get("en") for record in metrics.steps] == [1.0, 7.0, 1.0]


def test_resume_repeats_steps_and_the_last_line_wins(tmp_path: Path) -> None:
    valid = {"event": "valid", "loss": {"en": 2.0}}
    lines: list[object] = [step(n, 1.0) for n in range(1, 7)]
    lines += [valid | {"step": 2}, valid | {"step": 6}, {"event": "start", "train_iters": 9}]
    lines += [step(4, 5.0), step(5, 5.0)]
    metrics = read_metrics(write(tmp_path, lines))
    assert [(record.step, record.loss["en"]) for record in metrics.steps] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 5.0),
        (5, 5.0),
    ]
    assert [record.step for record in metrics.valids] == [2]  # that of step 6 is of the branch given up


def test_validation_of_the_same_step_counts_once(tmp_path: Path) -> None:
    lines = [step(1), {"event": "valid", "step": 1, "loss": {"en": 3.0}}]
    lines += [{"event": "valid", "step": 1, "loss": {"en": 2.0}}]
    metrics = read_metrics(write(tmp_path, lines))
    assert [record.loss for record in metrics.valids] == [{"en": 2.0}]


def test_missing_and_null_numbers_are_nan() -> None:
    line = (
        '{"step": 3, "objectives": ["a", "b"], "loss": {"a": NaN}, "moo": {"cosine": [[1, null], [null, 1]]}}'
    )
    record = parse_line(line)
    assert isinstance(record, StepRecord)
    assert math.isnan(record.loss["a"])
    assert math.isnan(record.lr)
    moo = moo_of(record)
    assert math.isnan(moo.cosine[0, 1])
    assert moo.cosine[1, 1] == 1.0
    assert moo.blocks == ()


@pytest.mark.parametrize("cosine", [[[1.0]], [[1.0, 0.5], [0.5]], "no", [["x", "y"], ["y", "x"]]])
def test_cosine_of_another_shape_counts_as_not_measured(cosine: object) -> None:
    record = parse_line(json.dumps({"step": 1, "objectives": ["a", "b"], "moo": {"cosine": cosine}}))
    assert moo_of(record).cosine.size == 0


@pytest.mark.parametrize(
    "line", ["", "null", "3", '{"loss": {}}', '{"step": null}', '{"step": "x"}', "{" * 9999]
)
def test_lines_without_a_record(line: str) -> None:
    assert parse_line(line) is None


def test_whole_model_as_the_only_block() -> None:
    moo = {"weights": {"model": {"a": 0.4, "b": 0.6}}, "stationarity": {"model": 0.5}}
    record = moo_of(parse_line(json.dumps({"step": 1, "objectives": ["a", "b"], "moo": moo})))
    assert record.blocks == ("model",)
    np.testing.assert_array_equal(record.weights, [[0.4, 0.6]])
    assert record.stationarity[0] == record.stationarity_model == 0.5


def test_blocks_are_ordered_from_the_embedding_up(tmp_path: Path) -> None:
    names = ["head", "decoder.layers.10", "decoder.layers.2", "embedding"]
    line = {"step": 1, "objectives": ["a"], "moo": {"conflict": dict.fromkeys(names, 0.1)}}
    metrics = read_metrics(write(tmp_path, [line]))
    assert metrics.blocks == ("embedding", "decoder.layers.2", "decoder.layers.10", "head")


def test_missing_run_and_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(MooError, match="no such run folder"):
        read_metrics(tmp_path / "nowhere")
    with pytest.raises(MooError, match="no metrics"):
        read_metrics(tmp_path)


def test_follow_yields_lines_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    seen: list[int] = []
    reached = threading.Event()

    def watch() -> None:
        for record in follow(path, poll_s=0.005):
            seen.append(record.step)
            reached.set()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(step(1)) + "\n" + '{"step": 2, "lo')
        file.flush()
        assert reached.wait(5)
        assert seen == [1]
        file.write('ss": {"en": 1.0}}\n' + '{"event": "end", "step": 9}\n' + json.dumps(step(3)) + "\n")
    watcher.join(5)
    assert not watcher.is_alive()
    assert seen == [1, 2, 9]


def test_follow_stops_after_a_last_look_and_respects_the_offset(tmp_path: Path) -> None:
    path = write(tmp_path, [step(1)]) / "metrics.jsonl"
    offset = path.stat().st_size
    with path.open("a") as file:
        file.write(json.dumps(step(2)) + "\n")
    found = list(follow(path, offset=offset, poll_s=0.001, stop=lambda: True))
    assert [record.step for record in found] == [2]
    assert list(follow(tmp_path / "never", poll_s=0.001, stop=lambda: True)) == []


def test_follow_starts_again_when_the_file_is_replaced(tmp_path: Path) -> None:
    path = write(tmp_path, [step(1), step(2), step(3)]) / "metrics.jsonl"
    records = follow(path, poll_s=0.001)
    assert [next(records).step for _ in range(3)] == [1, 2, 3]
    write(tmp_path, [{"event": "end", "step": 1}])
    assert [type(record) for record in records] == [EventRecord]
