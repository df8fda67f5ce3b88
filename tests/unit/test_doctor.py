"""The doctor: real imports of planted packages, and the verdict that follows from what was found."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_moo import doctor

HEALTHY: dict[str, Any] = {
    "python": {"version": "3.12.1", "path": "/venv/bin/python"},
    "torch": {"installed": True, "version": "2.13.0", "cuda": "13.0", "gpus": [], "gloo": True, "nccl": "2"},
    "megatron_core": {"installed": True, "version": "0.19.2"},
    "transformer_engine": {"installed": False},
    "apex": {"installed": False},
    "triton": {"installed": True, "version": "3.7.1"},
    "driver": [],
    "slurm": {"installed": False},
    "machine": {"cores": 2.0, "memory_gib": 8.0},
}  # fmt: skip
ONE_GPU = [{"name": "NVIDIA H100", "memory_gib": 79.6}]
BROKEN = {"installed": True, "error": "ImportError: undefined symbol: _ZN3c10"}


def facts(**changes: Any) -> dict[str, Any]:
    """What a healthy machine without a GPU shows, with changes; dictionaries are merged."""
    found = copy.deepcopy(HEALTHY)
    for name, value in changes.items():
        merge = isinstance(value, dict) and "error" not in value
        found[name] = {**found[name], **value} if merge else value
    found["run"] = doctor.choose(found)
    found["problems"], found["warnings"] = doctor.find_problems(found), doctor.find_warnings(found)
    return found


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str]) -> None:
    """Put packages before all others on the probing process's path."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def metadata(name: str, version: str) -> dict[str, str]:
    folder = f"{name}-{version}.dist-info"
    return {f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}


def test_a_healthy_cpu_machine_can_run() -> None:
    found = facts()

    assert found["run"] == {
        "platform": "cpu", "backend": "gloo", "layer_spec": "local", "adam": "torch", "fused": [],
    }  # fmt: skip
    assert found["problems"] == []
    assert found["warnings"] == []


@pytest.mark.parametrize(
    ("te", "apex", "expected"),
    [
        (False, {}, ("local", "torch", [])),
        (False, {"installed": True, "version": "0.1"}, ("local", "Apex", ["LayerNorm"])),
        (False, {"installed": True, "version": "0.9", "foreign": True}, ("local", "torch", [])),
        (
            True,
            {},
            ("transformer_engine", "Transformer Engine", ["norms", "attention", "FP8 by --fp8-format"]),
        ),
    ],
)
def test_a_gpu_machine_uses_nccl_and_what_is_there(te: bool, apex: dict[str, Any], expected: tuple) -> None:
    engine = {"installed": te, "version": "2.9"}
    found = facts(torch={"gpus": ONE_GPU}, transformer_engine=engine, apex=apex)

    run = found["run"]
    assert (run["platform"], run["backend"]) == ("cuda", "nccl")
    assert (run["layer_spec"], run["adam"], run["fused"]) == expected
    assert found["problems"] == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": {"installed": False}}, "torch is not installed"),
        ({"torch": BROKEN}, "torch does not import"),
        ({"torch": {"gloo": False}}, "without gloo"),
        ({"torch": {"gpus": ONE_GPU, "nccl": None}}, "without nccl"),
        ({"megatron_core": {"installed": False, "version": None}}, "megatron-core is not installed"),
        ({"megatron_core": {"version": "0.19.1"}}, "megatron-core 0.19.1 is not 0.19.2"),
        ({"megatron_core": {"version": "0.20.0"}}, "megatron-core 0.20.0 is not 0.19.2"),
        ({"megatron_core": BROKEN}, "megatron-core does not import"),
        ({"torch": {"gpus": ONE_GPU}, "transformer_engine": BROKEN}, "Transformer Engine does not import"),
    ],
)
def test_what_keeps_a_run_from_starting_is_one_problem_with_a_remedy(
    changes: dict[str, Any], words: str
) -> None:
    problems = facts(**changes)["problems"]

    assert len(problems) == 1
    assert words in problems[0]["what"]
    assert problems[0]["todo"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"torch": {"version": "2.11.0+cu130"}}, "torch 2.11.0 is not 2.13.0"),
        ({"driver": [{"name": "NVIDIA A100", "memory_mib": "40960", "driver": "470.1"}]}, "cannot use it"),
        ({"apex": {"installed": True, "version": "0.9.10", "foreign": True}}, "not NVIDIA's Apex"),
        ({"apex": BROKEN}, "Apex does not import"),
        ({"triton": BROKEN}, "Triton does not import"),
    ],
)
def test_what_is_odd_is_a_warning_and_not_a_problem(changes: dict[str, Any], words: str) -> None:
    found = facts(**changes)

    assert found["problems"] == []
    assert len(found["warnings"]) == 1
    assert words in found["warnings"][0]["what"]


def test_a_missing_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, {})

    assert doctor.probe("transformer_engine") == {"installed": False}


def test_a_package_that_raises_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "raise ImportError('libtransformer_engine.so:\\n undefined symbol')"
    plant(tmp_path, monkeypatch, {"transformer_engine/__init__.py": text})

    expected = "ImportError: libtransformer_engine.so: undefined symbol"
    assert doctor.probe("transformer_engine") == {"installed": True, "error": expected}


def test_a_package_that_crashes_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, {"triton/__init__.py": "import os\nos.abort()"})

    assert "ended its process" in doctor.probe("triton")["error"]


def test_a_package_that_hangs_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, {"triton/__init__.py": "import time\ntime.sleep(60)"})

    assert "did not end within 1 s" in doctor.probe("triton", timeout=1)["error"]


def test_a_package_that_prints_does_not_spoil_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, monkeypatch, {"triton/__init__.py": "print('hello', end='')\n__version__ = '9.9'"})

    assert doctor.probe("triton") == {"installed": True, "version": "9.9"}


def test_apex_of_pypi_is_told_from_nvidias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, monkeypatch, {"apex/__init__.py": "raise ImportError", **metadata("apex", "0.9.10")})

    assert doctor.probe("apex") == {"installed": True, "version": "0.9.10", "foreign": True}


def test_nvidias_apex_without_its_extensions_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"apex/__init__.py": "", "apex/optimizers/__init__.py": "", **metadata("apex", "0.1")}
    plant(tmp_path, monkeypatch, files)
    assert "amp_C" in doctor.probe("apex")["error"]

    plant(tmp_path, monkeypatch, {"amp_C.py": ""})
    assert doctor.probe("apex") == {"installed": True, "version": "0.1"}


def test_another_megatron_is_named_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"megatron/__init__.py": "raise ImportError", **metadata("megatron_core", "0.18.1")}
    plant(tmp_path, monkeypatch, files)

    assert doctor.probe("megatron_core") == {"installed": True, "version": "0.18.1"}


def tool(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_slurm_and_driver_are_read_from_their_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._slurm() == {"installed": False}
    assert doctor._driver() == []

    tool(tmp_path, "sbatch", "exit 0")
    tool(
        tmp_path,
        "sinfo",
        'case "$1" in --version) echo slurm-wlm 22.05.8;; *) echo 2 idle; echo 1 down;; esac',
    )
    tool(tmp_path, "nvidia-smi", "echo 'NVIDIA H100, 81559, 580.1'")
    assert doctor._slurm() == {"installed": True, "version": "slurm-wlm 22.05.8", "nodes": "2 idle, 1 down"}
    assert doctor._driver() == [{"name": "NVIDIA H100", "memory_mib": "81559", "driver": "580.1"}]

    tool(tmp_path, "sinfo", 'test "$1" = --version && echo slurm-wlm 22.05.8')
    assert doctor._slurm()["nodes"] is None
    tool(tmp_path, "nvidia-smi", "echo 'cannot talk to the driver'; exit 9")
    assert doctor._driver() == []


def answer(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    doctor.add_subcommands(parser.add_subparsers(required=True))
    args = parser.parse_args(["doctor", *arguments])
    return args.func(args)


def test_a_machine_that_cannot_run_says_why_on_stderr_and_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "collect", lambda: facts(megatron_core={"version": "0.19.1"}))

    assert answer() == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("doctor: megatron-core 0.19.1 is not 0.19.2")
    assert len(shown.err.splitlines()) == 1
    assert "No run is possible" in shown.out


def test_this_machine_can_run_and_the_answer_is_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """The tests run here, so the doctor must find a run possible. Slow: it imports Megatron."""
    assert answer("--json") == 0
    found = json.loads(capsys.readouterr().out)

    assert found["problems"] == []
    assert found["megatron_core"] == {"installed": True, "version": doctor.SUPPORTED_MEGATRON}
    assert found["machine"]["cores"] >= 1
    assert {name for name, _ in doctor.rows(found)} >= {
        "Python", "torch", "megatron-core", "GPU", "NCCL", "Transformer Engine", "Apex", "Triton", "SLURM",
    }  # fmt: skip


def test_the_verdict_is_the_platforms(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the doctor announces is what the trainer decides, with or without a GPU and Transformer Engine."""
    from megatron_moo.training import platform

    for gpu in (False, True):
        for engine in (False, True):
            monkeypatch.setattr(platform, "has_gpu", lambda gpu=gpu: gpu)
            monkeypatch.setattr(platform, "has_transformer_engine", lambda engine=engine: engine)
            flags = platform.default_flags()
            shown = facts(
                torch={"gpus": ONE_GPU if gpu else []},
                transformer_engine={"installed": engine, "version": "2"},
            )
            assert shown["run"]["layer_spec"] == flags["transformer-impl"]
            assert shown["run"]["backend"] == flags.get("distributed-backend", "nccl")
