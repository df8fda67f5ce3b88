"""Processes that do not outlive the one that started them, however that one ends (Linux)."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Let the kernel send this process ``number`` when its parent ends, also by ``kill -9``."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def tie_children() -> None:
    """Let every process that this one forks end with it."""
    os.register_at_fork(after_in_child=die_with_parent)
