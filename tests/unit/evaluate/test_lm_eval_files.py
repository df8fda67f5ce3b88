"""examples/lm_eval: what the code writes, and names that the installed lm-eval knows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from megatron_moo.evaluate.aligned import read_aligned
from megatron_moo.evaluate.cloze import make_items, write_task

ROOT = Path(__file__).resolve().parents[3]
EXAMPLES = ROOT / "examples" / "lm_eval"


def test_the_udhr_tasks_are_those_that_the_code_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mend by the command of examples/lm_eval/README.md."""
    texts = read_aligned(ROOT / "examples" / "udhr" / "valid")
    monkeypatch.chdir(tmp_path)
    folder = Path("examples") / "lm_eval" / "udhr"
    write_task(make_items(texts, 100), texts, folder)
    written = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (EXAMPLES / "udhr").iterdir()}
    assert written == kept and len(kept) == 2 * len(texts)


def _installed(pattern: str) -> str | None:
    """The name of the task or group in a file of the installed lm-eval; None without the file."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        pytest.skip("lm-eval is not installed")
    path = Path(spec.origin).parent / "tasks" / pattern
    # Not loaded as YAML: these files have tags that only lm-eval knows.
    found = (
        re.search(r"^(?:task|group): *(\w+) *$", path.read_text(), re.MULTILINE) if path.is_file() else None
    )
    return found and found[1]


def _file(task: str) -> str:
    if task.startswith("global_mmlu_full_"):
        return f"global_mmlu/full/{task.removeprefix('global_mmlu_full_')}/_{task}.yaml"
    return f"{task.split('_')[0]}/{task}.yaml"


@pytest.mark.parametrize("group", ["moo_belebele", "moo_global_mmlu", "moo_xnli"])
def test_groups_name_tasks_of_the_installed_harness(group: str) -> None:
    """File by file: the whole registry takes half a minute, and a slow test of test_eval.py reads it."""
    told = yaml.safe_load((EXAMPLES / f"{group}.yaml").read_text())
    assert told["group"] == group and len(told["task"]) == len(set(told["task"])) >= 12
    assert [_installed(_file(task)) for task in told["task"]] == told["task"]


def test_a_name_that_the_harness_lacks_would_be_seen() -> None:
    assert _installed(_file("xnli_xx")) is None
