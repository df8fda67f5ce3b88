"""``make lint`` refuses what runs code that lies in data, or a shell."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "check_unpickling.py"
_spec = importlib.util.spec_from_file_location("check_unpickling", SCRIPT)
assert _spec is not None and _spec.loader is not None
check_unpickling = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_unpickling)
FORBIDDEN = (
    ("import pickle\n\npickle.load(open('x', 'rb'))\n", "S301"),
    ("import pickle\n\npickle.loads(b'')\n", "S301"),
    ("eval('1 + 1')\n", "S307"),
    ("exec('1 + 1')\n", "S102"),
    ("import yaml\n\nyaml.load('x', Loader=yaml.Loader)\n", "S506"),
    ("import subprocess\n\nsubprocess.run('ls', shell=True, check=True)\n", "S602"),
)


@pytest.mark.parametrize("room", ["megatron_moo/training", "tools", "bench"])
@pytest.mark.parametrize(
    ("code", "rule"), FORBIDDEN, ids=[rule + code.split("(")[0][-8:] for code, rule in FORBIDDEN]
)
def test_lint_refuses_it(room: str, code: str, rule: str) -> None:
    command = [sys.executable, "-m", "ruff", "check", "--stdin-filename", str(ROOT / room / "new.py"), "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1 and rule in done.stdout, done.stdout


def test_no_rule_of_security_is_switched_off_in_our_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in check_unpickling.our_code()
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"noqa(?!: *[A-RT-Z]|: *SIM)", line)
    ]
    assert found == []


UNPICKLING = (
    "import torch\n\ntorch.load('x', weights_only=False)\n",
    "import torch\n\ntorch.load('x', weights_only=bool(1))\n",
    "import numpy as np\n\nnp.load('x', allow_pickle=True)\n",
    "import numpy as np\n\nnp.load('x', None, True)\n",
)


@pytest.mark.parametrize("code", UNPICKLING)
def test_lint_refuses_loaders_that_may_unpickle(tmp_path: Path, code: str) -> None:
    """ruff has no stable rule for these two. What is left to the defaults is safe since torch 2.6, NumPy 1.16.3."""
    new = tmp_path / "new.py"
    new.write_text(code + "np.load('x', allow_pickle=False)\ntorch.load('x', weights_only=True)\n")
    done = subprocess.run([sys.executable, SCRIPT, new], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"{new}:3: "), done.stderr
    assert done.stderr.count("\n") == 1


def test_our_code_has_none() -> None:
    assert len(check_unpickling.our_code()) > 200
    assert check_unpickling.main(check_unpickling.our_code()) == 0


def test_make_lint_and_pre_commit_run_it() -> None:
    told = subprocess.run(["make", "-n", "lint"], cwd=ROOT, capture_output=True, text=True, check=True)
    name = SCRIPT.relative_to(ROOT)
    assert f"python {name}\n" in told.stdout + "\n"
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    (hook,) = [hook for hook in hooks if str(name) in hook["entry"]]
    assert all(re.search(hook["files"], f"{folder}/x.py") for folder in check_unpickling.FOLDERS)
