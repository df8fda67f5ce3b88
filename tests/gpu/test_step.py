"""Training steps of the quickstart's model on a GPU (NCCL, world size 1, slots) against the CPU's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = (
    "--nproc", "1", "--train-iters", "2", "--eval-interval", "1000", "--save-interval", "1000",
    "--use-cpu-initialization",
)  # fmt: skip


def steps_of(run: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    """The records of two steps of ``examples/quickstart.yaml``."""
    command = [
        sys.executable,
        "-m",
        "megatron_moo.cli",
        "train",
        str(ROOT / "examples" / "quickstart.yaml"),
        *FLAGS,
    ]
    subprocess.run(
        [*command, "--run-dir", str(run)],
        check=True,
        cwd=ROOT,
        timeout=500,
        env={**os.environ, **environment},
    )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "event" not in line]


@pytest.mark.timeout(1200)
def test_two_steps_are_the_cpus(tmp_path: Path) -> None:
    ours = steps_of(tmp_path / "gpu", {})
    theirs = steps_of(tmp_path / "cpu", {"CUDA_VISIBLE_DEVICES": ""})
    assert len(ours) == len(theirs) == 2
    for one, other in zip(ours, theirs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-2)
        for block, weights in other["moo"]["weights"].items():
            assert one["moo"]["weights"][block] == pytest.approx(weights, abs=2e-2), block
        for mine, reference in zip(one["moo"]["cosine"], other["moo"]["cosine"], strict=True):
            assert mine == pytest.approx(reference, abs=2e-3)
