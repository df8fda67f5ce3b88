"""`megatron-moo eval` against what the run itself measured, and against lm-evaluation-harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.evaluate.tiny import tiny_model, write_text

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).parent / "megatron-moo"


def _call(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)],
        capture_output=True, text=True, timeout=240, cwd=cwd, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_run_is_evaluated_as_its_own_validation_did(tmp_path: Path) -> None:
    # Without padding rows of the embedding: the exporter cuts them, and with them their part of the softmax.
    recipe = (ROOT / "examples" / "quickstart.yaml").read_text()
    recipe = recipe.replace("udhr/languages.yaml", str(ROOT / "examples" / "udhr" / "languages.yaml"))
    (tmp_path / "recipe.yaml").write_text(recipe)
    flags = ["--train-iters", "4", "--num-layers", "2", "--hidden-size", "64", "--ffn-hidden-size", "96"]
    flags += [
        "--moo-slots",
        "14",
        "--nproc",
        "1",
        "--lr-warmup-fraction",
        "0",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    flags += ["--make-vocab-size-divisible-by", "1"]
    _call("train", "recipe.yaml", *flags, cwd=tmp_path)
    shown = _call("eval", tmp_path / "run", "--new-tokens", 3, cwd=tmp_path)
    found = json.loads((tmp_path / "run" / "eval.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = [record for record in records if record.get("event") == "valid"][-1]
    assert last["step"] == 4 and set(found["languages"]) == set(last["loss"])
    for tag, item in found["languages"].items():
        assert item["loss"] == pytest.approx(last["loss"][tag], abs=2e-5)
        assert item["bits_per_byte"] == pytest.approx(last["bits_per_byte"][tag], abs=2e-5)
    assert "bits/byte" in shown


@pytest.mark.slow
def test_cloze_is_that_of_the_harness(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    hf = tiny_model(tmp_path / "hf", positions=256)
    # Bytes as pieces, so that every text has tokens; one more piece ends a document.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = {piece: number for number, piece in enumerate([*alphabet, "<end>"])}
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(hf)
    text = write_text(tmp_path / "text", pages=20)
    tasks = tmp_path / "tasks"
    out = tmp_path / "eval.json"
    arguments = (
        "eval",
        hf,
        "--text",
        text,
        "--items",
        40,
        "--new-tokens",
        0,
        "--lm-eval",
        "--task-dir",
        tasks,
    )
    _call(*arguments, "--out", out, cwd=tmp_path)
    found = json.loads(out.read_text())
    assert found["cloze"]["items"] == 40
    for tag, item in found["languages"].items():
        ours, theirs = item["cloze"], item["lm_eval"]
        assert (ours["acc"], ours["acc_norm"]) == pytest.approx(
            (theirs["acc"], theirs["acc_norm"]), abs=1e-9
        ), tag
    assert (
        len({item["cloze"]["acc"] for item in found["languages"].values()}) > 1
    )  # not the same by being constant
    assert sorted(path.name for path in tasks.iterdir()) == ["aa.jsonl", "aa.yaml", "bb.jsonl", "bb.yaml"]
