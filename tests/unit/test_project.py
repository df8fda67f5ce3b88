"""The project's own files agree with each other, and set-up finds the right Python."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIND_PYTHON = ROOT / "scripts" / "find_python.sh"
TARGETS = {"help", "setup", "train", "test", "test-slow", "lint", "bench", "bench-gpu", "experiment", "clean"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, str]:
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonical(name): version for name, version in pairs}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> set[str]:
    declared = [*project()["dependencies"]]
    for extra in project()["optional-dependencies"].values():
        declared += extra
    names = {canonical(re.split(r"[\[<>=! ;]", requirement)[0]) for requirement in declared}
    return names - {"megatron-moo"}


def test_every_requirement_is_pinned_and_no_pin_has_an_address() -> None:
    assert requirements() - set(pins()) == set()
    assert "://" not in (ROOT / "constraints.txt").read_text()


def test_the_supported_megatron_and_the_tested_torch_are_the_pinned_ones() -> None:
    from megatron_moo import doctor
    from megatron_moo.buckets import seam

    assert pins()["megatron-core"] == doctor.SUPPORTED_MEGATRON == seam.SUPPORTED_VERSION
    assert pins()["torch"] == doctor.TESTED_TORCH
    assert f"megatron-core[training]=={seam.SUPPORTED_VERSION}" in project()["dependencies"]


def test_nothing_requires_the_apex_of_pypi_or_transformer_engine() -> None:
    assert requirements() & {"apex", "transformer-engine"} == set()


# What megatron-core[training] and torch bring along; and what is only imported where it is found.
BROUGHT_ALONG = {"transformers", "tokenizers", "accelerate", "triton", "setuptools"}
NEVER_REQUIRED = {"transformer_engine", "apex", "amp_C"}


def imported_modules() -> dict[str, str]:
    """Top-level module -> a tracked file that imports it, of everything that is not ours and not Python's."""
    tracked = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found: dict[str, str] = {}
    for name in tracked.stdout.split():
        if not (ROOT / name).exists():
            continue
        for node in ast.walk(ast.parse((ROOT / name).read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules = [node.module]
            else:
                continue
            found.update(dict.fromkeys((module.split(".")[0] for module in modules), name))
    ours = {"megatron_moo", "tests", *(path.stem for path in ROOT.glob("*/*.py"))}
    return {name: file for name, file in found.items() if name not in ours | set(sys.stdlib_module_names)}


def test_everything_that_is_imported_is_required() -> None:
    """An import that works here because somebody installed it by hand fails on a fresh machine."""
    owners = packages_distributions()
    missing = {
        name: file
        for name, file in imported_modules().items()
        if name not in BROUGHT_ALONG | NEVER_REQUIRED
        and not {canonical(owner) for owner in owners.get(name, [name])} & requirements()
    }
    assert missing == {}


def test_make_without_a_target_is_help_and_lists_targets_of_the_design_only() -> None:
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    listed = set(re.findall(r"^  make (\S+)", shown, flags=re.MULTILINE))

    assert listed >= {"help", "setup", "train", "test", "lint", "bench", "clean"}
    assert listed <= TARGETS


LIGHT = (
    "megatron_moo",
    "megatron_moo.doctor",
    "megatron_moo.cli",
    "megatron_moo.data",
    "megatron_moo.report",
)


@pytest.mark.parametrize("name", [name for name in LIGHT if importlib.util.find_spec(name)])
def test_light_rooms_do_not_import_megatron(name: str) -> None:
    code = f"import sys, {name}; print('megatron' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def find_python(home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {"PATH": f"{home / 'bin'}:/usr/bin:/bin", "HOME": str(home), **env}
    return subprocess.run(["bash", str(FIND_PYTHON)], capture_output=True, text=True, env=clean, check=False)


needs_312_only_here = pytest.mark.skipif(
    any(Path(folder, "python3.12").exists() for folder in ("/usr/bin", "/bin"))
    or sys.version_info[:2] != (3, 12),
    reason="the system's own Python is 3.12 and would be found first",
)


@needs_312_only_here
def test_a_shim_that_fails_is_passed_over_for_pyenvs_own_python(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "python3.12", "echo 'pyenv: python3.12: command not found' >&2; exit 127")
    real = script(
        tmp_path / ".pyenv" / "versions" / "3.12.9" / "bin" / "python", f'exec {sys.executable} "$@"'
    )

    done = find_python(tmp_path)

    assert done.returncode == 0, done.stderr
    assert os.path.realpath(done.stdout.strip()) == os.path.realpath(sys.executable)
    real.unlink()
    assert find_python(tmp_path).returncode == 1


@needs_312_only_here
def test_without_any_python_312_there_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    done = find_python(tmp_path)

    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "make setup PYTHON=" in done.stderr


@needs_312_only_here
def test_uv_is_asked_when_it_is_there(tmp_path: Path) -> None:
    script(tmp_path / "bin" / "uv", f'test "$1 $2" = "python find" && echo {sys.executable}')

    assert find_python(tmp_path).returncode == 0


def test_a_chosen_python_of_another_release_is_refused(tmp_path: Path) -> None:
    other = script(tmp_path / "other", "exit 1")
    done = find_python(tmp_path, PYTHON=str(other))

    assert done.returncode == 1
    assert f"PYTHON={other}" in done.stderr
