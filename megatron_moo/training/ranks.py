"""The ranks of this machine: started, asked to end, started again after a fault, and why they failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.training.orphans import die_with_parent
from megatron_moo.training.plan import RunPlan
from megatron_moo.training.recipe import to_argv
from megatron_moo.training.watchdog import FAULT

_ERROR_LINE = re.compile(r"megatron-moo: error: (.*)")
_FAULT_LINE = re.compile(re.escape(FAULT) + "(.*)")
_RANK = re.compile(r"^\[rank\d+\]:\s?")
_EXCEPTION = re.compile(r"^[\w.]*(?:Error|Exception|Interrupt)\b")
# How torchrun lists ranks that a signal ended.
_KILLED = re.compile(r"rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: -(\d+)")
_ENDINGS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass
class Failure:
    """Why ranks failed.

    Attributes:
        error: to be told.
        machine: whether a process was killed or got lost, so that the same run may well succeed when started again.
    """

    error: MooError
    machine: bool


class Ending:
    """While it is entered, a signal to this process asks the ranks to save and leave; ``asked`` is its number or 0."""

    def __init__(self) -> None:
        self.asked = 0
        self._ranks: subprocess.Popen | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Ending:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._pass_on) for number in _ENDINGS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def follow(self, ranks: subprocess.Popen) -> None:
        """Pass signals on to this torchrun from now on."""
        self._ranks = ranks
        if self.asked:
            ranks.terminate()

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self.asked = number
        if self._ranks is not None and self._ranks.poll() is None:
            # torchrun would leave by SIGUSR1 at once, and tell its ranks of an SIGINT that they do not save after.
            self._ranks.terminate()


def run_ranks(plan: RunPlan, ending: Ending, watch: Callable[[Callable[[], bool]], None]) -> Failure | None:
    """Start the ranks and wait for their end.

    Args:
        plan: what to run.
        ending: how they are asked to end early.
        watch: shows the run; returns soon after the function that it is given says that the ranks have ended.
    """
    logs = _new_folder(plan.run_dir / "logs")
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        # All ranks are here; a machine's own name need not resolve (in a container it often does not).
        "--local-addr=127.0.0.1", f"--nproc-per-node={plan.world}",
        "--redirects=3", f"--log-dir={logs}", "-m", "megatron_moo.training.main", *to_argv(plan.flags),
    ]  # fmt: skip
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // plan.world)))
    with (logs / "launcher.log").open("w") as out:
        # A session of its own: an interrupt from the keyboard comes from here, as a request to save. It does not
        # outlive this process, and the ranks do not outlive it.
        ranks = subprocess.Popen(
            command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_ask_when_parent_is_gone,
        )  # fmt: skip
        ending.follow(ranks)
        ended = threading.Event()
        threading.Thread(target=_set_after, args=(ranks, ended), daemon=True).start()
        watch(ended.is_set)
        status = ranks.wait()
    return None if status == 0 else find_failure(logs, status, bool(ending.asked))


def _ask_when_parent_is_gone() -> None:
    die_with_parent(signal.SIGTERM)


def _new_folder(parent: Path) -> Path:
    name = parent / time.strftime("%Y%m%d-%H%M%S")
    for folder in (name, *(name.with_name(f"{name.name}-{count}") for count in range(2, 1000))):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise MooError("holds too many logs of this second", str(parent))


def _set_after(process: subprocess.Popen, ended: threading.Event) -> None:
    process.wait()
    ended.set()


def find_failure(logs: Path, status: int, asked: bool) -> Failure | None:
    """Why the ranks of a folder of logs failed; None for ranks that were ``asked`` to end and did so in order."""
    stderrs = [
        path.read_text(encoding="utf-8", errors="replace").splitlines()
        for path in sorted(logs.rglob("stderr.log"))
    ]
    lines = [line for text in stderrs for line in text]
    if told := _first(_ERROR_LINE, lines):
        return Failure(MooError(told), machine=False)
    todo = f"the logs of the ranks lie in {logs}"
    launcher = (logs / "launcher.log").read_text(encoding="utf-8", errors="replace")
    # After a SIGTERM torchrun itself kills what does not end in time.
    killed = [
        (rank, int(number)) for rank, number in _KILLED.findall(launcher) if int(number) != signal.SIGTERM
    ]
    fault = _first(_FAULT_LINE, lines)
    if killed or fault:
        words = [f"rank {rank} was killed by {signal.Signals(number).name}" for rank, number in killed]
        return Failure(
            MooError("; ".join([*words, *([fault] if fault else [])]), "training", todo), machine=True
        )
    exceptions = [found for text in stderrs if (found := _last_exception(text)) is not None]
    if asked and not exceptions:
        return None
    what = exceptions[0] if exceptions else f"the ranks ended with status {status}"
    return Failure(MooError(what, "training", todo), machine=False)


def _first(pattern: re.Pattern[str], lines: Iterable[str]) -> str | None:
    return next((match[1] for line in lines if (match := pattern.search(line))), None)


def _last_exception(lines: list[str]) -> str | None:
    """The exception that ends a traceback; a bare one with the line of code that raised it."""
    text = [_RANK.sub("", line) for line in lines]
    at = [number for number, line in enumerate(text) if _EXCEPTION.match(line)]
    if not at:
        return None
    last = text[at[-1]]
    code = [line.strip() for line in text[: at[-1]] if line.strip(" ^~")]
    return last if ":" in last or not code else f"{last}: {code[-1]}"
