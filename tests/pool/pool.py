"""The tests process's side of the pool: start the template, hand out parts of a run, collect the answers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from tests.pool.protocol import Outcome, Task
from tests.pool.template import MAX_RANKS

_ROOT = Path(__file__).resolve().parents[2]
_START_TIMEOUT_S = 180.0
_PEERS_AFTER_FAILURE_S = 1.0
_STACK_DUMP_S = 0.5
_LOG_TAIL = 4000
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class PoolError(RuntimeError):
    """The template did not start or went away."""


class RankError(AssertionError):
    """At least one rank raised or died.

    ``errors`` maps each such rank to its traceback, the first to fail first; ``__cause__`` is its exception.
    """

    def __init__(self, name: str, world_size: int, errors: dict[int, str]) -> None:
        self.errors = errors
        parts = [f"rank {rank} of {world_size} failed in {name}\n{text}" for rank, text in errors.items()]
        super().__init__("\n".join(parts))


class RankTimeout(AssertionError):
    """Some ranks did not answer in time. ``ranks`` names them; the message shows where each one was."""

    def __init__(self, name: str, timeout: float, logs: dict[int, str]) -> None:
        self.ranks = sorted(logs)
        lines = [f"{name}: no answer within {timeout:g} s from rank {', '.join(map(str, self.ranks))}"]
        lines += [f"rank {rank} was here:\n{text}" for rank, text in logs.items()]
        super().__init__("\n".join(lines))


class RankPool:
    """Runs a function on 1 to 8 gloo ranks. The template starts with the first run, :meth:`close` ends it."""

    def __init__(self) -> None:
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._runs = 0

    def run(
        self, fn: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60.0, **kwargs: Any
    ) -> list[Any]:
        """Call ``fn(rank, world_size, *args, **kwargs)`` on every rank of a new gloo process group.

        Args:
            fn: a function at the top level of an importable module; it travels by name.
            world_size: number of ranks, 1 to 8; each computes on one thread and starts with the same seed.
            timeout: seconds until all ranks must have answered, the template's own start not counted.

        Returns:
            what each rank returned, in rank order; results and arguments travel as pickles.

        Raises:
            RankError: a rank raised or died; it holds that rank's traceback.
            RankTimeout: ranks hang; it holds the place where each one was.
            PoolError: the template could not start.
        """
        if not 1 <= world_size <= MAX_RANKS:
            raise ValueError(f"world_size must be 1 to {MAX_RANKS}, not {world_size}")
        name = _importable_name(fn)
        arguments = pickle.dumps((args, kwargs))
        self._ensure_template()
        self._runs += 1
        logs = [Path(self._directory) / f"run{self._runs}-rank{rank}.log" for rank in range(world_size)]
        store = _store(timeout)
        connections, pids = self._fork(world_size)
        try:
            for rank, connection in enumerate(connections):
                task = Task(
                    rank=rank, world_size=world_size, module=name[0], qualname=name[1], arguments=arguments,
                    sys_path=tuple(sys.path), directory=os.getcwd(), store_port=store.port, timeout=timeout,
                    log=str(logs[rank]),
                )  # fmt: skip
                connection.send_bytes(pickle.dumps(task))
            return _collect(":".join(name), connections, pids, logs, timeout)
        finally:
            _end(pids)
            for connection in connections:
                connection.close()
            for log in logs:
                log.unlink(missing_ok=True)

    def close(self) -> None:
        """End the template. A later run starts a new one."""
        if self._control is not None:
            self._control.close()
        if self._template is not None:
            self._template.kill()
            self._template.wait()
        if self._scratch is not None:
            self._scratch.cleanup()
        self._template = self._control = self._scratch = None

    @property
    def _directory(self) -> str:
        assert self._scratch is not None
        return self._scratch.name

    def _ensure_template(self) -> None:
        if self._template is not None and self._template.poll() is None:
            return
        self.close()
        self._scratch = tempfile.TemporaryDirectory(prefix="rank-pool-")
        self._control, theirs = socket.socketpair()
        command = [sys.executable, "-m", "tests.pool.template", str(theirs.fileno()), str(os.getpid())]
        log = Path(self._directory) / "template.log"
        with log.open("wb") as output, theirs:
            self._template = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], cwd=_ROOT, env=_environment(),
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            answer = self._hear(_START_TIMEOUT_S)
        except (OSError, PoolError) as error:
            tail = _tail(log)
            self.close()
            raise PoolError(f"the template did not start: {error}\n{tail}") from error
        if "error" in answer:
            self.close()
            raise PoolError(f"the template did not start\n{answer['error']}")

    def _fork(self, world_size: int) -> tuple[list[Connection], list[int]]:
        assert self._control is not None
        pairs = [Pipe() for _ in range(world_size)]
        socket.send_fds(self._control, [b"fork"], [theirs.fileno() for _, theirs in pairs])
        for _, theirs in pairs:
            theirs.close()
        return [ours for ours, _ in pairs], self._hear(_START_TIMEOUT_S)

    def _hear(self, timeout: float) -> Any:
        """One line of JSON from the template."""
        assert self._control is not None
        self._control.settimeout(timeout)
        line = b""
        while not line.endswith(b"\n"):
            chunk = self._control.recv(4096)
            if not chunk:
                raise PoolError("the template went away")
            line += chunk
        return json.loads(line)


def _importable_name(fn: Callable[..., Any]) -> tuple[str, str]:
    qualname = getattr(fn, "__qualname__", "")
    if not qualname or "<" in qualname:
        raise ValueError(f"{fn!r} must be at the top level of a module: it is sent to the ranks by name")
    return fn.__module__, qualname


def _environment() -> dict[str, str]:
    env = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
    # Ranks are gloo ranks on the CPU even where there is a GPU; loopback needs no name resolution.
    env.update(CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo", TOKENIZERS_PARALLELISM="false")
    return env


def _store(timeout: float) -> Any:
    """The meeting place of one run, on a port that the system chooses."""
    import torch.distributed as dist

    limit = timedelta(seconds=timeout)
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=limit)


def _collect(
    name: str, connections: list[Connection], pids: list[int], logs: list[Path], timeout: float
) -> list[Any]:
    outcomes: dict[int, Outcome] = {}
    deadline = time.monotonic() + timeout
    failed = False
    while len(outcomes) < len(connections):
        waiting = [connection for rank, connection in enumerate(connections) if rank not in outcomes]
        ready = wait(waiting, max(0.0, deadline - time.monotonic()))
        if not ready:
            break
        for connection in ready:
            rank = connections.index(connection)  # type: ignore[arg-type]
            outcomes[rank] = _receive(connections[rank], logs[rank])
            if outcomes[rank].error is not None and not failed:
                # The peers now wait for a rank that will not come: hear who failed as well, then end them.
                failed, deadline = True, min(deadline, time.monotonic() + _PEERS_AFTER_FAILURE_S)
    if failed:
        _raise_failures(name, len(connections), outcomes)
    missing = [rank for rank in range(len(connections)) if rank not in outcomes]
    if missing:
        raise RankTimeout(name, timeout, _where(missing, pids, logs))
    return [outcomes[rank].value for rank in range(len(connections))]


def _receive(connection: Connection, log: Path) -> Outcome:
    try:
        return pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        return Outcome(error=f"the process died without an answer; its last output:\n{_tail(log)}")


def _raise_failures(name: str, world_size: int, outcomes: dict[int, Outcome]) -> None:
    # In the order in which they failed: the first one is the cause more often than not.
    failures = {rank: outcome for rank, outcome in outcomes.items() if outcome.error is not None}
    error = RankError(name, world_size, {rank: str(outcome.error) for rank, outcome in failures.items()})
    raise error from next(iter(failures.values())).exception


def _where(ranks: list[int], pids: list[int], logs: list[Path]) -> dict[int, str]:
    """Let each hanging rank write its stack into its log, and read the logs."""
    for rank in ranks:
        _signal(pids[rank], signal.SIGUSR1)
    time.sleep(_STACK_DUMP_S)
    return {rank: _tail(logs[rank]) for rank in ranks}


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-_LOG_TAIL:] if log.exists() else ""


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # it has ended already


def _end(pids: list[int]) -> None:
    for pid in pids:
        _signal(pid, signal.SIGKILL)
