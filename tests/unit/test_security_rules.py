"""``make lint`` refuses what runs code that lies in data, or a shell."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
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


def our_code() -> list[Path]:
    folders = ("megatron_moo", "tools", "scripts", "bench", "examples")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def test_no_rule_of_security_is_switched_off_in_our_code() -> None:
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in our_code()
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.search(r"noqa(?!: *[A-RT-Z]|: *SIM)", line)
    ]
    assert found == []


def test_torch_never_unpickles_more_than_weights() -> None:
    """ruff has no stable rule for this one. What is left to torch's default is True since 2.6."""
    found = [
        f"{path.relative_to(ROOT)}:{node.value.lineno}"
        for path in our_code()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword)
        and node.arg == "weights_only"
        and getattr(node.value, "value", 0) is not True
    ]
    assert found == []
