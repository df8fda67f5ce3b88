"""Where there is a GPU the CPU platform is never imported; elsewhere it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PROGRAM = """
import sys
import torch
torch.cuda.is_available = lambda: {gpu}
from megatron_moo.training import platform
platform.prepare()
with platform.initialising():
    pass
print(platform.has_gpu(), "megatron_moo.training.platform_cpu" in sys.modules, sorted(platform.default_flags()))
"""


@pytest.mark.parametrize("gpu", [True, False])
def test_the_cpu_platform_is_imported_only_without_a_gpu(gpu: bool) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(gpu=gpu)], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{gpu} {not gpu} ")
    assert ("use-cpu-initialization" in done.stdout) == (not gpu)
