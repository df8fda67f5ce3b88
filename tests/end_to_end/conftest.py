"""The command line as a user calls it, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = """\
languages: {languages}
num-layers: 2
hidden-size: 32
ffn-hidden-size: 64
num-attention-heads: 2
seq-length: 32
micro-batch-size: 2
position-embedding-type: rope
normalization: RMSNorm
swiglu: true
disable-bias-linear: true
attention-dropout: 0.0
hidden-dropout: 0.0
lr: 1.0e-3
train-iters: 6
eval-interval: 1000
"""
Command = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run ``megatron-moo ARGS`` in an empty folder."""

    def run(*args: str, timeout: float = 180) -> subprocess.CompletedProcess:
        env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}
        env |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
        return subprocess.run(
            [sys.executable, "-m", "megatron_moo.cli", *args],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def three_languages(tmp_path: Path) -> Path:
    """A recipe over three bundled languages, and one unseen."""
    udhr = ROOT / "examples" / "udhr"
    lines = ["tokenizer: byte", "languages:"]
    for tag in ("el", "ko", "tr"):
        lines.append(f"  {tag}: {{train: [{udhr}/train/{tag}.txt], valid: [{udhr}/valid/{tag}.txt]}}")
    lines += ["unseen:", f"  nl: {{valid: [{udhr}/valid/nl.txt]}}"]
    (tmp_path / "languages.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(TINY.format(languages="languages.yaml"), encoding="utf-8")
    return recipe
