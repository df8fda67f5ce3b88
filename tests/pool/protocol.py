"""What the tests process, the template and the ranks say to each other."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass
from typing import Any

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Task:
    """One rank's part of a run.

    The function travels by name; its arguments are pickled apart, to be opened after ``sys.path`` is set.
    """

    rank: int
    world_size: int
    module: str
    qualname: str
    arguments: bytes
    sys_path: tuple[str, ...]
    directory: str
    store_port: int
    timeout: float
    log: str


@dataclass(frozen=True)
class Outcome:
    """How a rank's part ended: a value, or a traceback's text and the exception if it can be pickled."""

    value: Any = None
    error: str | None = None
    exception: BaseException | None = None


def die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when its parent dies; exit at once if that has happened already."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
