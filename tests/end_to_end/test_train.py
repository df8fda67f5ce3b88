"""``megatron-moo train``: what a run leaves behind, that it goes on where it stopped, and how it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.conftest import Command


def lines_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def losses_of(run: Path) -> dict[int, dict[str, float]]:
    return {line["step"]: line["loss"] for line in lines_of(run) if "loss" in line and "event" not in line}


def scalars_of(folder: Path) -> dict[str, dict[int, float]]:
    """What tensorboard would draw: value by step of every tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.timeout(400)
def test_a_run_and_its_resumption(command: Command, three_languages: Path, tmp_path: Path) -> None:
    whole = command("train", "tiny.yaml", "--run-dir", "whole")
    assert whole.returncode == 0, whole.stderr
    for tag in ("el", "ko", "tr", "nl"):
        assert f" {tag} " in whole.stdout
    for word in ("held-out", "conflict rate", "tokens/s", "whole/report.html"):
        assert word in whole.stdout, whole.stdout
    run = tmp_path / "whole"
    assert (run / "report.html").stat().st_size > 10_000
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "6"

    steps = [line for line in lines_of(run) if "event" not in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4, 5, 6]
    first = steps[0]
    assert first["objectives"] == ["el", "ko", "tr"]
    assert set(first["loss"]) == {"el", "ko", "tr"}
    # Three languages on two lanes: two slots, four places, so one language comes twice.
    assert sorted(first["tokens"].values()) == [64, 64, 128]
    assert first["moo"]["cosine_same"] is not None
    assert set(first["moo"]["stationarity"]) == set(first["moo"]["weights"]) | {"model"}
    waited = {name: seconds for name, seconds in first["phase_s"].items() if name != "hidden"}
    assert set(waited) == {"compute", "exchange", "gramian", "solve", "combine", "optimizer"}
    assert sum(waited.values()) == pytest.approx(first["step_time_s"], rel=0.05)
    assert first["phase_s"]["hidden"] > 0, (
        "without overlap a bucket's exchange is still under way when the next starts"
    )
    valid = [line for line in lines_of(run) if line.get("event") == "valid"]
    assert [line["step"] for line in valid] == [0, 6]
    assert valid[0]["unseen"] == ["nl"] and set(valid[0]["loss"]) == {"el", "ko", "tr", "nl"}
    assert 5.0 < valid[0]["loss"]["nl"] < 7.0, "an untrained byte model knows about ln 257 nats"
    drawn = scalars_of(run / "tensorboard")
    assert drawn["loss/el"] == pytest.approx({step["step"]: step["loss"]["el"] for step in steps}, rel=1e-6)
    for tag, part in (
        ("stationarity/model", "stationarity"),
        ("norm/head", "norm"),
        ("conflict/head", "conflict"),
    ):
        expected = {step["step"]: step["moo"][part][tag.split("/")[1]] for step in steps}
        assert drawn[tag] == pytest.approx(expected, rel=1e-5)
    assert {
        "tokens/ko",
        "samples/ko",
        "phase_s/exchange",
        "weights/head/tr",
        "cosine/el~ko",
        "step_time_s",
    } <= set(drawn)
    corpora = [path.name for path in (tmp_path / "runs" / "data").iterdir() if not path.name.startswith(".")]
    assert len(corpora) == 1 and corpora[0].startswith(f"{tmp_path.name}-"), (
        "a manifest has a corpus of its own"
    )
    fingerprint = json.loads((tmp_path / "runs" / "data" / corpora[0] / "build.json").read_text())[
        "fingerprint"
    ]
    recipe = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    assert recipe["flags"]["moo-slots"] == 2 and recipe["versions"]["megatron-core"] == "0.19.2"

    stopped = command("train", "tiny.yaml", "--run-dir", "parts", "--exit-interval", "3")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped before the last step" in stopped.stdout
    assert sorted(losses_of(tmp_path / "parts")) == [1, 2, 3]
    resumed = command("train", "tiny.yaml", "--run-dir", "parts")
    assert resumed.returncode == 0, resumed.stderr
    assert losses_of(tmp_path / "parts") == losses_of(run), "the curve goes on exactly"
    told = [
        line["corpus"] for line in lines_of(tmp_path / "parts") if line.get("event") in ("start", "resume")
    ]
    assert told == [fingerprint] * 2, "what compare takes for the data of a run"

    again = command("train", "tiny.yaml", "--run-dir", "whole")
    assert again.returncode == 0 and "all 6 steps are done" in again.stdout

    other = command("train", "tiny.yaml", "--run-dir", "whole", "--moo-method", "mean")
    assert other.returncode == 2
    assert "whole: belongs to another recipe (moo-method was 'cagrad' and is 'mean'" in other.stderr
    assert len(other.stderr.strip().splitlines()) == 1


BAD: tuple[tuple[tuple[str, ...], str], ...] = (
    (("--moo-method", "magic"), "--moo-method: unknown method 'magic'"),
    (("--moo-block", "tensor"), "--moo-block: unknown value 'tensor'"),
    (("--moo-metod", "mean"), "unknown flag 'moo-metod'; did you mean 'moo-method'?"),
    (("--hidden-size", "big"), "argument --hidden-size: invalid int value: 'big'"),
    (("--tensor-model-parallel-size", "4"), "--nproc: 2 ranks do not divide into tensor 4"),
    (("--global-batch-size", "7"), "global-batch-size: 7 is not a multiple of 8"),
    (("--fp16",), "fp16 loss scaling does not work with MOO"),
    (("--languages", "none.yaml"), "none.yaml"),
    (("--moo-mixed",), "--moo-mixed: cagrad needs one language per micro-batch; use --moo-method mean"),
    (
        ("--moo-early-stop", "de"),
        "--moo-early-stop: cannot watch 'de'; choose one of macro, worst, unseen, el, ko, tr, nl",
    ),
)


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("flags", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line(
    command: Command, three_languages: Path, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    refused = command("train", "tiny.yaml", "--run-dir", "never", *flags, timeout=60)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (tmp_path / "never").exists()


MANIFESTS: tuple[tuple[str, str, str], ...] = (
    ("missing file", "languages:\n  el: {train: [a.txt], valid: [v.txt]}\n  ko: {train: [gone.txt], valid: [v.txt]}\n",
     "gone.txt"),
    ("empty language", "languages:\n  el: {train: [a.txt], valid: [v.txt]}\n  ko: {train: [e.txt], valid: [v.txt]}\n",
     "ko"),
    ("one language", "languages:\n  el: {train: [a.txt], valid: [v.txt]}\n", "1 objective, MOO needs at least 2"),
)  # fmt: skip


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("name", "text", "message"), MANIFESTS, ids=[name for name, _, _ in MANIFESTS])
def test_bad_manifests(
    command: Command, three_languages: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / "languages.yaml").write_text("tokenizer: byte\n" + text, encoding="utf-8")
    for file, content in (("a.txt", "alpha beta\n" * 50), ("v.txt", "gamma\n" * 50), ("e.txt", "")):
        (tmp_path / file).write_text(content, encoding="utf-8")
    refused = command("train", "tiny.yaml", "--run-dir", "never", timeout=60)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (tmp_path / "never").exists()
