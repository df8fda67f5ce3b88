"""examples/paper: what tuning picks, and that the comparison's reference is the baseline that it puts first."""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml

from megatron_moo.errors import MooError

ROOT = Path(__file__).resolve().parents[3]
RECIPES = ROOT / "examples" / "slurm" / "recipes"


@pytest.fixture
def pick() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("paper_pick", ROOT / "examples" / "paper" / "pick.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _known(bits: dict[str, float]) -> Any:
    return lambda folder: SimpleNamespace(
        seen=("en", "de"), bits={"en": bits[folder.name], "de": bits[folder.name] + 0.5, "vi": -9.0}
    )


def test_the_best_row_and_rate_by_the_mean_over_seeds(
    pick: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = {
        "tune-mean-1e-5-901": 1.0, "tune-mean-1e-5-902": 1.2, "tune-mean-2e-5-901": 0.8, "tune-mean-2e-5-902": 1.6,
        "tune-random-1e-5-901": 1.0, "tune-random-1e-5-902": 1.1, "tune-random-2e-5-901": 0.1,
        "tune-random-2e-5-902": math.nan,
    }  # fmt: skip
    monkeypatch.setattr(pick, "read_run", _known(bits))
    rates, seeds = ["1e-5", "2e-5"], ["901", "902"]
    assert pick.pick(Path("runs"), ["mean"], rates, seeds) == ("mean", "1e-5")
    assert pick.pick(Path("runs"), ["mean", "random"], rates, seeds) == (
        "random",
        "1e-5",
    )  # not the diverged one
    monkeypatch.setattr(pick, "read_run", _known(dict.fromkeys(bits, math.nan)))
    with pytest.raises(MooError, match="diverged"):
        pick.pick(Path("runs"), ["mean"], rates, seeds)


def test_the_tuning_manifest_differs_in_held_out_text_only() -> None:
    one, other = (
        yaml.safe_load((RECIPES / name).read_text())
        for name in ("languages-8.yaml", "languages-8-tuning.yaml")
    )
    for tag, language in one["languages"].items():
        mine = other["languages"][tag].pop("valid")
        assert not set(mine) & set(language.pop("valid"))
    assert one == other


def test_the_script_compares_with_the_baseline_that_tuning_puts_first(tmp_path: Path) -> None:
    (tmp_path / "examples" / "paper").mkdir(parents=True)
    shutil.copy(ROOT / "examples" / "paper" / "run.sh", tmp_path / "examples" / "paper")
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    # pick.py RUNS ROW... --rates: with several rows it says `random`
    (programs / "python").write_text(
        '#!/bin/bash\n[[ $4 == --rates ]] && echo "$3 2e-5" || echo "random 2e-5"\n'
    )
    (programs / "megatron-moo").write_text("#!/bin/bash\n")
    for program in programs.iterdir():
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", tmp_path / "examples" / "paper" / "run.sh"],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PATH": "/usr/bin:/bin", "SEEDS": "1 2", "RATES": "1e-5 2e-5", "TUNING_SEEDS": "901"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in done.stdout.splitlines()]
    train = [words for words in said if "train" in words]
    tuning = [words for words in train if "tune-" in words[words.index("--run-dir") + 1]]
    assert len(tuning) == 6 * 2 and len(train) == len(tuning) + 6 * 2
    for words in train:
        manifest, corpus = (words[words.index(flag) + 1] for flag in ("--languages", "--corpus"))
        assert ("tuning" in manifest) == ("tuning" in corpus) == (words in tuning)
        assert words in tuning or words[words.index("--lr") + 1] == "2e-5"
    compare = next(words for words in said if "compare" in words)
    assert compare[compare.index("--reference") + 1] == "random-1"
    analyze = next(words for words in said if "analyze" in words)
    assert "runs/paper/random-1" in analyze
