"""Why ranks failed, read from their logs: a user's mistake, a fault of the machine, or a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training.launch import restart_count
from megatron_moo.training.ranks import Ending, find_failure
from megatron_moo.training.recipe import Recipe
from megatron_moo.training.watchdog import FAULT, peer_is_lost, short

KILLED = """\
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_09:00:00
  host      : node
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 123)
  error_file: <N/A>
  traceback : Signal 9 (SIGKILL) received by PID 123
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : 70 (pid: 122)
"""
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\nValueError: no\n'


def logs_of(folder: Path, launcher: str, *stderrs: str) -> Path:
    for rank, text in enumerate(stderrs):
        (folder / "x" / str(rank)).mkdir(parents=True)
        (folder / "x" / str(rank) / "stderr.log").write_text(text)
    (folder / "launcher.log").write_text(launcher)
    return folder


def test_a_mistake_of_the_users_is_told_and_not_started_again(tmp_path: Path) -> None:
    told = "megatron-moo: error: --lr: too high; lower it\n"
    failure = find_failure(logs_of(tmp_path, KILLED, f"{FAULT}another rank is gone\n", told), 1, False)
    assert failure is not None and not failure.machine
    assert str(failure.error) == "--lr: too high; lower it"


def test_a_killed_rank_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    failure = find_failure(
        logs_of(tmp_path, KILLED, f"{TRACEBACK}{FAULT}another rank is gone (x)\n", ""), 1, False
    )
    assert failure is not None and failure.machine
    assert str(failure.error).startswith(
        "training: rank 1 was killed by SIGKILL; another rank is gone (x); the logs"
    )


def test_a_traceback_is_no_fault_of_the_machine(tmp_path: Path) -> None:
    failure = find_failure(logs_of(tmp_path, "", "", TRACEBACK), 1, False)
    assert failure is not None and not failure.machine
    assert str(failure.error).startswith("training: ValueError: no; the logs of the ranks lie in")


def test_ranks_that_were_asked_to_end_did_not_fail(tmp_path: Path) -> None:
    terminated = KILLED.replace("-9", "-15").replace("SIGKILL", "SIGTERM")
    assert find_failure(logs_of(tmp_path, terminated, "", ""), 1, True) is None
    failure = find_failure(logs_of(tmp_path / "b", "", "", TRACEBACK), 1, True)
    assert failure is not None, "but one that failed meanwhile did"


def test_what_a_lost_peer_looks_like() -> None:
    gloo = (
        "[/gloo/pair.cc:553] Connection closed by peer [127.0.0.1]:4242. This is typically caused by a crash"
    )
    assert short(RuntimeError(gloo)) == "Connection closed by peer [127.0.0.1]:4242"
    assert peer_is_lost(RuntimeError(gloo))
    assert peer_is_lost(RuntimeError("Timed out waiting 5000ms for send operation to complete"))
    assert not peer_is_lost(RuntimeError("size mismatch for weight"))
    assert not peer_is_lost(ValueError(gloo))


def test_signals_are_passed_on_as_sigterm() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with Ending() as ending:
        ending.follow(child)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert child.wait(10) == -signal.SIGTERM
        assert ending.asked == signal.SIGUSR1
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_a_process_ends_with_its_parent() -> None:
    """The parent is killed; its child sleeps on without the tie, and ends with it."""
    code = (
        "import subprocess, sys, time\n"
        "from megatron_moo.training.orphans import die_with_parent\n"
        "tie = die_with_parent if sys.argv[1] == 'tied' else None\n"
        "child = subprocess.Popen(['sleep', '60'], preexec_fn=tie)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    for word, ends in (("tied", True), ("free", False)):
        parent = subprocess.Popen([sys.executable, "-c", code, word], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        parent.stdout.close()
        deadline = time.monotonic() + (5 if ends else 0.5)
        while _alive(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert _alive(child) != ends
        if not ends:
            os.kill(child, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def test_a_number_of_restarts() -> None:
    assert restart_count(Recipe(Path("r.yaml"), {"max-restarts": 3})) == 3
    assert restart_count(Recipe(Path("r.yaml"), {})) == 0
    with pytest.raises(MooError, match="--max-restarts: 'many' is not a number of restarts"):
        restart_count(Recipe(Path("r.yaml"), {"max-restarts": "many"}))
