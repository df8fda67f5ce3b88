"""MOO in scripts that are not ours: a team's own, and the Megatron-style door."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_moo.training.platform import CPU_FLAGS
from megatron_moo.training.recipe import to_argv
from tests.end_to_end.conftest import ROOT

MODEL = to_argv(
    {
        "num-layers": 2, "hidden-size": 32, "ffn-hidden-size": 64, "num-attention-heads": 2, "seq-length": 32,
        "max-position-embeddings": 32, "micro-batch-size": 2, "position-embedding-type": "rope", "swiglu": True,
        "normalization": "RMSNorm", "disable-bias-linear": True, "attention-dropout": 0.0, "hidden-dropout": 0.0,
        "lr": 1e-3, "train-iters": 3, "eval-interval": 1000,
    }
)  # fmt: skip


def torchrun(tmp_path: Path, script: str, flags: list[str], **env: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(ROOT / script), *flags],
        cwd=tmp_path, env={**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **env},
        capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip


def steps_of(path: Path) -> list[dict]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "event" not in line]


@pytest.mark.timeout(300)
def test_a_teams_own_script(three_languages: Path, tmp_path: Path) -> None:
    """Two lines put MOO into it: three languages on two ranks and two slots, losses booked per language."""
    flags = [
        *to_argv(CPU_FLAGS), *MODEL, "--use-distributed-optimizer", "--dataloader-type", "external",
        "--tokenizer-type", "NullTokenizer", "--vocab-size", "257", "--global-batch-size", "8",
        "--calculate-per-token-loss", "--log-interval", "1", "--eval-iters", "1", "--overlap-grad-reduce",
    ]  # fmt: skip
    done = torchrun(
        tmp_path, "examples/own_script/pretrain_own.py", flags, LANGUAGES=str(tmp_path / "languages.yaml")
    )
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = tmp_path / "runs" / "megatron" / "metrics.jsonl"
    told = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    assert told[-1].get("event") == "end" and told[-1]["step"] == 3, "nothing but the two lines says so"
    assert [line["step"] for line in told if line.get("event") == "valid"] == [0, 3]
    assert [line.get("event") for line in told].count("end") == 1
    steps = steps_of(metrics)
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert set(steps[0]["loss"]) == {"el", "ko", "tr"}
    assert steps[0]["moo"]["method"] == "cagrad" and len(steps[0]["moo"]["weights"]) == 4


@pytest.mark.timeout(300)
def test_the_megatron_style_door(three_languages: Path, tmp_path: Path) -> None:
    flags = [
        *MODEL,
        "--global-batch-size",
        "8",
        "--languages",
        str(tmp_path / "languages.yaml"),
        "--moo-method",
        "mgda",
    ]
    done = torchrun(tmp_path, "tools/pretrain_gpt.py", [*flags, "--run-dir", "door"])
    assert done.returncode == 0, done.stderr[-3000:]
    steps = steps_of(tmp_path / "door" / "metrics.jsonl")
    assert len(steps) == 3 and steps[0]["moo"]["method"] == "mgda"
    assert (tmp_path / "door" / "checkpoints" / "latest_checkpointed_iteration.txt").read_text() == "3"

    refused = torchrun(tmp_path, "tools/pretrain_gpt.py", MODEL)
    assert refused.returncode != 0 and "megatron-moo: error: --languages: no manifest" in refused.stderr
