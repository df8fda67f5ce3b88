"""Tasks of lm-eval by name: what is refused before a model is opened, and how results are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from megatron_moo.cli import main
from megatron_moo.evaluate.harness import _told
from megatron_moo.evaluate.show import show_tasks

TOLD = {
    "results": {
        "moo_xnli": {"alias": "moo_xnli", "acc,none": 0.5, "acc_stderr,none": 0.01},
        "xnli_de": {
            "alias": " - xnli_de",
            "acc,none": 0.25,
            "acc_stderr,none": "N/A",
            "exact_match,strict": 0.125,
        },
    },
    "n-samples": {"xnli_de": {"original": 2490, "effective": 2490}},
    "n-shot": {"xnli_de": 0, "moo_xnli": 0},
    "versions": {"xnli_de": 1.0},
}


def test_numbers_of_a_task_and_of_a_group() -> None:
    assert _told(TOLD, "xnli_de") == {
        "metrics": {"acc": 0.25, "exact_match,strict": 0.125}, "stderr": {}, "items": 2490, "shots": 0, "version": 1.0
    }  # fmt: skip
    group = _told(TOLD, "moo_xnli")
    assert group["metrics"] == {"acc": 0.5} and group["stderr"] == {"acc": 0.01} and group["items"] is None
    console = Console(width=80, record=True, quiet=False)
    show_tasks(console, {name: _told(TOLD, name) for name in TOLD["results"]})
    shown = console.export_text()
    assert "0.0100" in shown and "exact_match,strict" in shown and "2490" in shown


def test_what_is_refused_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path), "--tasks", ","]) == 2
    assert "names no task" in capsys.readouterr().err
    assert main(["eval", str(tmp_path), "--tasks", "a", "--task-dir", str(tmp_path / "gone")]) == 2
    assert "is no folder" in capsys.readouterr().err
