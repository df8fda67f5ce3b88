"""``megatron-moo train`` seen from the data: what is drawn, what a resume changes, when it stops, and the baseline."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import ROOT, Command
from tests.end_to_end.test_train import lines_of, losses_of, scalars_of

UDHR = ROOT / "examples" / "udhr"


def events_of(run: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in lines_of(run) if line.get("event") == name]


def steps_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in lines_of(run) if "event" not in line]


def write_manifest(folder: Path, tags: str, sampling: str) -> None:
    lines = ["tokenizer: byte", f"sampling: {sampling}", "languages:"]
    lines += [
        f"  {tag}: {{train: [{UDHR}/train/{tag}.txt], valid: [{UDHR}/valid/{tag}.txt]}}"
        for tag in tags.split()
    ]
    (folder / "languages.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.timeout(400)
def test_a_resume_may_change_blend_languages_lanes_and_slots(
    command: Command, three_languages: Path, tmp_path: Path
) -> None:
    write_manifest(tmp_path, "el ko tr", "uniform")
    flags = ("train", "tiny.yaml", "--run-dir", "run", "--train-iters", "8")
    first = command(*flags, "--exit-interval", "3")
    assert first.returncode == 0, first.stderr
    run = tmp_path / "run"
    kept = steps_of(run)[-1]["samples"]
    assert sum(kept.values()) == 3 * 8, "two lanes x two slots x micro-batches of two"

    # Greek and Korean stay, Turkish goes, two come; drawn by size now. The places stay: four, for four objectives.
    write_manifest(tmp_path, "el ko de vi", "proportional")
    second = command(*flags, "--exit-interval", "6")
    assert second.returncode == 0, second.stderr
    steps = steps_of(run)
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[3]["objectives"] == ["el", "ko", "de", "vi"]
    for step in steps[3:]:
        assert step["samples"]["el"] == kept["el"] + 2 * (step["step"] - 3), "goes on where it stopped"
        assert step["samples"]["de"] == 2 * (step["step"] - 3), "begins at its first sample"
        assert set(step["loss"]) == {"el", "ko", "de", "vi"}

    # One lane and two slots: half as many places, so the objectives rotate; the global batch stays.
    third = command(*flags, "--nproc", "1", "--moo-slots", "2")
    assert third.returncode == 2
    assert "run: its run has 4 places a step (slots x lanes), these settings have 2" in third.stderr
    third = command(*flags, "--nproc", "1", "--moo-slots", "2", "--moo-other-places")
    assert third.returncode == 0, third.stderr
    assert "2 places a step (slots x lanes) where the run had 4" in third.stdout
    assert "4 objectives rotate over 2 places a step" in third.stdout
    steps = steps_of(run)
    assert [step["step"] for step in steps] == list(range(1, 9))
    before, after = steps[5]["samples"], steps[7]["samples"]
    assert sum(after.values()) - sum(before.values()) == 2 * 8
    assert all(after[tag] >= before[tag] for tag in before)
    told = events_of(run, "drawn")[-1]
    assert told["step"] == 8 and told["languages"]["el"]["samples"] == after["el"]
    trained = sum(sum(step["tokens"].values()) for step in steps[6:])
    assert sum(language["tokens"] for language in told["languages"].values()) == trained, (
        "since the law began"
    )


@pytest.mark.timeout(400)
def test_early_stopping_ends_a_run_and_more_patience_lets_it_go_on(
    command: Command, three_languages: Path, tmp_path: Path
) -> None:
    # At this learning rate nothing ever improves.
    flags = ("train", "tiny.yaml", "--run-dir", "run", "--train-iters", "40", "--eval-interval", "2", "--lr", "1e-12",
             "--moo-early-stop", "worst", "--moo-patience")  # fmt: skip
    stopped = command(*flags, "2")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped early at step 4: the worst language did not improve" in stopped.stdout
    run = tmp_path / "run"
    assert (run / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "4"
    assert lines_of(run)[-1] == {**lines_of(run)[-1], "event": "end", "step": 4}
    event = events_of(run, "stopped")
    valid = events_of(run, "valid")[0]
    bits = {tag: valid["bits_per_byte"][tag] for tag in valid["seen"]}
    assert valid["worst"]["seen"] == max(bits, key=lambda tag: bits[tag])
    assert valid["macro"]["seen"] == pytest.approx(sum(bits.values()) / 3)
    assert [(e["step"], e["watch"], e["best"]) for e in event] == [(4, "worst", max(bits.values()))]
    assert "Stopped early at step 4" in (run / "report.html").read_text(encoding="utf-8")
    drawn = scalars_of(run / "tensorboard")
    assert drawn["valid/macro"][0] == pytest.approx(valid["macro"]["seen"])
    assert drawn["share_asked/el"][4] == pytest.approx(1 / 3)

    again = command(*flags, "2")
    assert again.returncode == 0 and "raise --moo-patience" in again.stdout
    assert len(steps_of(run)) == 4
    more = command(*flags, "3")
    assert more.returncode == 0, more.stderr
    assert [e["step"] for e in events_of(run, "stopped")] == [4, 6], "the count goes on from the checkpoint"


@pytest.mark.timeout(300)
def test_mixed_languages_are_the_same_run_on_one_rank_and_two(
    command: Command, three_languages: Path, tmp_path: Path
) -> None:
    flags = ("train", "tiny.yaml", "--moo-mixed", "--moo-method", "mean", "--global-batch-size", "8")
    two = command(*flags, "--run-dir", "two")
    assert two.returncode == 0, two.stderr
    assert "3 languages, mixed inside micro-batches, plain mean; 2 ranks" in two.stdout
    one = command(*flags, "--run-dir", "one", "--nproc", "1")
    assert one.returncode == 0, one.stderr
    losses = losses_of(tmp_path / "two")
    assert sorted(losses) == [1, 2, 3, 4, 5, 6]
    for step, expected in losses_of(tmp_path / "one").items():
        assert losses[step] == pytest.approx(expected, rel=1e-5)
    assert losses[6]["el"] < losses[1]["el"] - 0.05
    step = steps_of(tmp_path / "two")[0]
    assert sum(step["tokens"].values()) == 8 * 32 and step["moo"] == {
        "method": "mean, languages mixed inside micro-batches"
    }
    assert events_of(tmp_path / "two", "drawn")[-1]["presence"] == "mixed"


@pytest.mark.timeout(300)
def test_fine_tuning_on_packed_conversations_has_the_loss_of_unpacked_ones(
    command: Command, three_languages: Path, tmp_path: Path
) -> None:
    """Through Megatron's attention, where a mask that is dropped lets a conversation read the one before it."""
    words = {
        "en": ["yes", "no", "maybe", "often", "never", "again"],
        "de": ["ja", "nein", "doch", "oft", "nie", "wieder"],
    }
    for tag, known in words.items():
        talks = [
            [
                {"role": "user", "content": f"{known[i % 6]} {i}?"},
                {"role": "assistant", "content": " ".join(known[: 1 + i % 5])},
            ]
            for i in range(60)
        ]
        lines = [json.dumps({"messages": talk}) for talk in talks]
        (tmp_path / f"{tag}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    valid = {}
    for pack in ("true", "false"):
        (tmp_path / "languages.yaml").write_text(
            f"tokenizer: byte\nsft: {{max_length: 96, template: plain, pack: {pack}}}\nlanguages:\n"
            "  en: {train: [en.jsonl], valid: [en.jsonl]}\n  de: {train: [de.jsonl], valid: [de.jsonl]}\n",
            encoding="utf-8",
        )
        flags = ("--seq-length", "256", "--train-iters", "2", "--lr", "0.01")
        done = command("train", "tiny.yaml", "--run-dir", pack, *flags)
        assert done.returncode == 0, done.stderr
        valid[pack] = events_of(tmp_path / pack, "valid")
        told = events_of(tmp_path / pack, "drawn")[-1]["languages"]["en"]
        an_epoch = round(told["samples"] / told["epochs"])
        assert an_epoch == 60 if pack == "false" else an_epoch < 20, "sixty conversations in a few samples"
    for tag in words:
        assert valid["true"][0]["loss"][tag] == pytest.approx(valid["false"][0]["loss"][tag], rel=1e-5)
        assert valid["true"][1]["loss"][tag] < valid["true"][0]["loss"][tag]


@pytest.mark.timeout(120)
def test_a_damaged_corpus_is_refused_before_step_1(
    command: Command, three_languages: Path, tmp_path: Path
) -> None:
    """A flipped bit in the tokens, which Megatron's own reader takes for another token."""
    built = command("data", "build", "languages.yaml", "--out", "corpus")
    assert built.returncode == 0, built.stderr
    path = tmp_path / "corpus" / "ko" / "train.bin"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    refused = command("train", "tiny.yaml", "--run-dir", "never", "--corpus", "corpus", timeout=60)
    assert refused.returncode == 2
    assert re.search(r"ko/train\.bin: .*offset", refused.stderr), refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "never").exists()
