"""Quality through a narrow wire (slow): losses within the seeds' spread, cosines within their bounds."""

from __future__ import annotations

import importlib.util
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COSINES = {"bf16": 1e-3, "fp8": 1e-2, "fp8, feedback": 1e-2}


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_the_quickstart_learns_as_well_through_a_narrow_wire(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("wire", ROOT / "bench" / "wire.py")
    assert spec is not None and spec.loader is not None
    wire = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wire)
    results = wire.measure(tmp_path, seeds=5, steps=60)
    losses = {name: [run["loss"] for run in runs] for name, runs in results.items()}
    spread = max(losses["fp32"]) - min(losses["fp32"])
    for name, bound in COSINES.items():
        assert abs(statistics.mean(losses[name]) - statistics.mean(losses["fp32"])) <= spread, name
        for run, base in zip(results[name], results["fp32"], strict=True):
            assert wire.off(run["cosine"], base["cosine"]) < bound, name
