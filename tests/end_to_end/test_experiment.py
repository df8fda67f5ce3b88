"""The experiment's loop is `megatron-moo train` without the processes: the same losses for the same recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMAND = Path(sys.executable).parent / "megatron-moo"

# Runs in a process of its own: it starts Megatron.
_OURS = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from megatron_moo.experiment.cell import train_cell
from megatron_moo.experiment.corpus import Text
from megatron_moo.experiment.engine import Engine
from megatron_moo.experiment.rows import Row
from tests.end_to_end.test_experiment import SETTING

torch.set_num_threads(1)
folder, row, losses = Path(sys.argv[1]), json.loads(sys.argv[2]), []
import megatron_moo.experiment.cell as cell
cell.AUTO_EVERY = 2
setting = replace(SETTING, measure_every=int(sys.argv[3]))
text = Text(folder / "data" / "languages.yaml", folder / "corpus", setting)
train_cell(Engine(setting, text.vocab), text, Row("row", "row", **row), 3e-3, 1,
           each_step=lambda step, found: losses.append(found.tolist()), steps=5)
print("LOSSES", json.dumps(losses))
"""


def _setting():  # noqa: ANN202
    from megatron_moo.experiment.setting import Setting

    # Warm-up over fewer steps than are compared, so that most of them move the weights.
    return replace(Setting(), steps=40, warmup=0.05, valid_windows=2, measure_every=0)


SETTING = _setting()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The experiment's corpus, from text that is made here: six alphabets with their own letter frequencies."""
    import numpy as np

    from megatron_moo.experiment.corpus import prepare
    from megatron_moo.experiment.setting import SEEN, UNSEEN

    root = tmp_path_factory.mktemp("experiment")
    for number, tag in enumerate((*SEEN, *UNSEEN)):
        random = np.random.default_rng(number)
        first, count = (0x61, 26) if number % 2 else (0x3B1, 24)
        letters = [*(chr(first + i) for i in range(count)), " "]
        shares = random.dirichlet([0.5] * len(letters))
        for kind, pages in (("train", 40), ("valid", 20)):
            (root / "source" / kind).mkdir(parents=True, exist_ok=True)
            lines = [
                json.dumps({"id": f"p{page}", "text": "".join(random.choice(letters, 300, p=shares))})
                for page in range(pages)
            ]
            (root / "source" / kind / f"{tag}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare(root / "source", root / "data", SETTING)
    return root


def _theirs(folder: Path, name: str, flags: dict[str, object]) -> list[list[float]]:
    from megatron_moo.experiment.setting import SEEN

    recipe = {
        **SETTING.recipe(), "languages": str(folder / "data" / "languages.yaml"), "lr": 3e-3, "min-lr": 3e-4,
        "seed": 1, "moo-slots": 6, "exit-interval": 5, "eval-interval": 1000, "save-interval": 1000, **flags,
    }  # fmt: skip
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    run = folder / f"run-{name}"
    command = [COMMAND, "train", path, "--nproc", "1", "--run-dir", run, "--corpus", folder / "corpus"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=folder, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "event" not in record][:5]
    return [[record["loss"][tag] for tag in SEEN] for record in steps]


def _ours(folder: Path, row: dict[str, object], measure_every: int) -> list[list[float]]:
    done = subprocess.run(
        [sys.executable, "-c", _OURS, folder, json.dumps(row), str(measure_every)],
        capture_output=True, text=True, timeout=240, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.split("LOSSES", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row", "flags"),
    [
        ("cagrad", {"method": "cagrad", "block": "layer"}, {"moo-method": "cagrad", "moo-block": "layer"}),
        (
            "adam",
            {"method": "upgrad", "block": "module", "metric": "adam"},
            {"moo-method": "upgrad", "moo-block": "module", "moo-metric": "adam"},
        ),
        (
            "auto",
            {"method": "cagrad", "block": "auto"},
            {"moo-method": "cagrad", "moo-block": "auto", "moo-auto-every": 2},
        ),
        (
            "every",
            {"method": "pcgrad", "block": "model", "every": 2},
            {"moo-method": "pcgrad", "moo-block": "model", "moo-every": 2},
        ),
    ],
)
def test_the_loop_is_that_of_the_train_command(
    folder: Path, name: str, row: dict[str, object], flags: dict[str, object]
) -> None:
    # A measured step takes its gradients from halves of the batch and must change nothing.
    measure_every = 2 if name == "cagrad" else 0
    theirs, ours = _theirs(folder, name, flags), _ours(folder, row, measure_every)
    assert len(theirs) == len(ours) == 5
    assert abs(theirs[4][0] - theirs[0][0]) > 0.05  # the weights did move
    gap = max(
        abs(a - b) for one, other in zip(theirs, ours, strict=True) for a, b in zip(one, other, strict=True)
    )
    assert gap <= 1e-5, (theirs, ours)


@pytest.mark.slow
def test_three_minutes(folder: Path, tmp_path: Path) -> None:
    command = [
        COMMAND, "experiment", "--budget", "3m", "--data", folder / "source", "--out", tmp_path / "run",
        "--page", tmp_path / "results.md",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "results.md").read_text()
    assert "over 2 paired seeds" in " ".join(page.split()) and "## Conflict beside its noise floor" in page
    cells = (tmp_path / "run" / "cells.jsonl").read_text().splitlines()
    again = subprocess.run(command, capture_output=True, text=True, timeout=280, env=environment, check=False)
    assert again.returncode == 0
    assert (tmp_path / "run" / "cells.jsonl").read_text().splitlines() == cells  # everything was done
    assert (tmp_path / "results.md").read_text() == page
