"""One rank of one run: join the process group, call the function, send back its result or how it failed."""

from __future__ import annotations

import faulthandler
import importlib
import multiprocessing
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from tests.pool.protocol import Outcome, Task

_SEED = 1234
_GRACE_S = 60.0


def serve(descriptor: int) -> None:
    """Do the one task that comes through the connection, then wait to be ended.

    The rank stays alive after its answer: its sockets must stay open until its slowest peer has finished too.
    """
    connection = Connection(descriptor)
    task: Task = pickle.loads(connection.recv_bytes())
    _redirect_output(task.log)
    outcome = _perform(task)
    # The rank is killed in the end, and what it started would outlive it: Megatron's checkpoints leave a manager.
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send_bytes(_encode(outcome))
    connection.poll(_GRACE_S)


def _redirect_output(path: str) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=False)


def _perform(task: Task) -> Outcome:
    try:
        _enter(task)
        args, kwargs = pickle.loads(task.arguments)
        value = _resolve(task)(task.rank, task.world_size, *args, **kwargs)
        return Outcome(value=value)
    except BaseException as error:
        return Outcome(error=traceback.format_exc(), exception=error)


def _enter(task: Task) -> None:
    import torch
    import torch.distributed as dist

    sys.path[:] = task.sys_path
    os.chdir(task.directory)
    os.environ.update(RANK=str(task.rank), LOCAL_RANK=str(task.rank), WORLD_SIZE=str(task.world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(task.store_port))
    torch.manual_seed(_SEED)
    # Longer than the pool's own limit: the pool names the ranks that hang, gloo would not.
    limit = timedelta(seconds=task.timeout + _GRACE_S)
    store = dist.TCPStore("127.0.0.1", task.store_port, is_master=False, timeout=limit)
    dist.init_process_group("gloo", store=store, rank=task.rank, world_size=task.world_size, timeout=limit)


def _resolve(task: Task) -> Callable[..., Any]:
    found: Any = importlib.import_module(task.module)
    for part in task.qualname.split("."):
        found = getattr(found, part)
    return found


def _encode(outcome: Outcome) -> bytes:
    try:
        return pickle.dumps(outcome)
    except Exception as error:
        if outcome.error is None:
            return pickle.dumps(Outcome(error=f"the result cannot be pickled: {error!r}"))
        return pickle.dumps(Outcome(error=outcome.error))
