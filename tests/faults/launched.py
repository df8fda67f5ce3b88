"""``megatron-moo train`` in processes of its own, with a mark by which everything that it started is found again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.tiny import ROOT, lines_of

_MARK = "MOO_TEST_MARK"
_BREAK = "MOO_TEST_BREAK"
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM", "TORCHELASTIC", "GROUP_")


class Launched:
    """A run under way.

    Args:
        recipe, run, flags: what to train, and its folder.
        grace_s: what torchrun leaves its ranks after a signal.
        broken: a function of ``tests.faults.breaks`` with its arguments, called first on every rank.
    """

    def __init__(
        self, recipe: Path, run: Path, *flags: str, grace_s: float = 30, broken: tuple[Any, ...] = ()
    ) -> None:
        self.run, self.mark = run, uuid.uuid4().hex
        env = {key: value for key, value in os.environ.items() if not key.startswith(_LAUNCHERS)}
        env |= {
            "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "100", "GLOO_SOCKET_IFNAME": "lo",
            _MARK: self.mark, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(int(grace_s)),
        }  # fmt: skip
        if broken:  # ``python -m`` leaves no other way in: sitecustomize.py there reads it
            env |= {_BREAK: json.dumps(broken), "PYTHONPATH": f"{Path(__file__).parent / 'site'}:{ROOT}"}
        command = [
            sys.executable,
            "-m",
            "megatron_moo.cli",
            "train",
            str(recipe),
            "--run-dir",
            str(run),
            *flags,
        ]
        self.process = subprocess.Popen(
            command, cwd=recipe.parent, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.out = self.err = ""

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *error: object) -> None:
        """End whatever is left; a test that looks for orphans does so before."""
        for pid in (self.process.pid, *self.processes()):
            _kill(pid, signal.SIGKILL)
        self.process.wait()

    def processes(self) -> list[int]:
        """Every living process that the run started, the launcher itself left out."""
        return [pid for pid, mark, _ in _all() if mark.get(_MARK) == self.mark and pid != self.process.pid]

    def rank(self, number: int) -> int:
        """Process of a rank."""
        for pid, env, command in _all():
            mine = env.get(_MARK) == self.mark and env.get("RANK") == str(number)
            if mine and "megatron_moo.training.main" in command and "torch.distributed.run" not in command:
                return pid
        raise AssertionError(f"rank {number} is not there")

    def wait_for_step(self, step: int, begins: int = 1, timeout: float = 120) -> None:
        """Until the ranks have begun ``begins`` times and reached ``step`` since."""
        self.wait_until(lambda: self._reached(step, begins), f"step {step} of start {begins}", timeout)

    def _reached(self, step: int, begins: int) -> bool:
        if not (self.run / "metrics.jsonl").exists():
            return False
        begun, last = 0, 0
        for fields in lines_of(self.run):
            if fields.get("event") in ("start", "resume"):
                begun, last = begun + 1, 0
            elif "event" not in fields:
                last = fields["step"]
        return begun >= begins and last >= step

    def wait_until(self, reached: Callable[[], bool], what: str, timeout: float) -> float:
        """Seconds until ``reached()``."""
        started = time.monotonic()
        while not reached():
            assert self.process.poll() is None or reached(), f"ended before {what}: {self.end(1)}"
            assert time.monotonic() - started < timeout, f"no {what} within {timeout} s"
            time.sleep(0.02)
        return time.monotonic() - started

    def end(self, timeout: float = 120) -> int:
        """Exit status; ``out`` and ``err`` hold what it said."""
        self.out, self.err = self.process.communicate(timeout=timeout)
        return self.process.returncode


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has)."""
    return _state(pid) in "ZX"


def stopped(pid: int) -> bool:
    """Whether a process was stopped (SIGSTOP)."""
    return _state(pid) == "T"


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def _all() -> list[tuple[int, dict[str, str], str]]:
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or gone(int(folder.name)):
            continue
        try:
            pairs = (folder / "environ").read_bytes().decode("utf-8", "replace").split("\0")
            command = (folder / "cmdline").read_bytes().decode("utf-8", "replace").replace("\0", " ")
        except OSError:  # gone, or another user's
            continue
        found.append((int(folder.name), dict(pair.partition("=")[::2] for pair in pairs), command))
    return found


def _kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
