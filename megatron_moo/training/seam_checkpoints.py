"""The part of the seam that knows how Megatron-Core saves and loads; it replaces, like ``buckets/seam.py``.

1. ``training.save_checkpoint``: where a save begins and ends.
2. ``serialization.save_integrity_manifest`` and ``verify_integrity_manifest``: what ``--verify-integrity`` calls, the
   first after the last file of a checkpoint was written (by an asynchronous save too), before the tracker file.
3. ``checkpointing.maybe_msc.open``: with it the tracker file is written, in place; ours writes it in one piece.
4. ``filesystem_async.get_write_results_queue``: starts a process for a queue, which outlives a killed rank. Ours is no
   process where the rank itself writes, and one that ends with the rank where another process does.
5. ``PersistentAsyncCaller.async_loop``: the process that writes an asynchronous save; a machine without a GPU has to
   answer for CUDA there too.
6. ``training.get_signal_handler``: tells all ranks of a SIGTERM that one of them got.
"""

from __future__ import annotations

import importlib
import io
import multiprocessing
import queue
from collections.abc import Callable
from functools import partial
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from megatron_moo.buckets.seam import SUPPORTED_VERSION
from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.integrity import TRACKER, write_atomically
from megatron_moo.training.orphans import die_with_parent

_TRAINING = "megatron.training.training"
_CHECKPOINTING = "megatron.training.checkpointing"
_SERIALIZATION = "megatron.core.dist_checkpointing.serialization"
_ASYNC = "megatron.core.dist_checkpointing.strategies.async_utils"
_WRITER = "megatron.core.dist_checkpointing.strategies.filesystem_async"

PRIVATE_NAMES: tuple[tuple[str, str], ...] = (
    (_TRAINING, "save_checkpoint"),
    (_TRAINING, "get_signal_handler"),
    (_CHECKPOINTING, "maybe_msc"),
    (_SERIALIZATION, "save_integrity_manifest"),
    (_SERIALIZATION, "verify_integrity_manifest"),
    (_WRITER, "get_write_results_queue"),
    (_ASYNC, "PersistentAsyncCaller.async_loop"),
)
_MEGATRONS_LIST = "integrity.json"


class CheckpointSeam:
    """Puts our functions in Megatron's places; :meth:`remove` puts Megatron's back.

    Args:
        around_save: called with Megatron's ``save_checkpoint`` and its arguments.
        last_file: called by the first rank with the folder of a checkpoint whose files are all written.
        saved: called by the first rank with the folder of checkpoints after the tracker file names the new one.
        asked_to_end: called on every rank with the ranks that got the signal to end.
        async_save: whether another process writes the files.

    Raises:
        MooError: for a name that is not where it was.
    """

    def __init__(
        self,
        around_save: Callable[..., Any],
        last_file: Callable[[Path], None],
        saved: Callable[[Path], None],
        asked_to_end: Callable[[list[int]], None],
        async_save: bool = False,
    ) -> None:
        for name in missing_names():
            raise MooError(
                f"{name} is not where megatron-core {SUPPORTED_VERSION} has it", "seam_checkpoints.py"
            )
        self._undo: list[Callable[[], None]] = []
        self._asked_to_end = asked_to_end
        self._replace(_TRAINING, "save_checkpoint", lambda stock: partial(around_save, stock))
        self._replace(_TRAINING, "get_signal_handler", lambda stock: lambda: self._told(stock()))
        self._replace(_CHECKPOINTING, "maybe_msc", lambda stock: TrackerInOnePiece(stock, saved))
        self._replace(
            _SERIALIZATION, "save_integrity_manifest", lambda _: lambda folder: last_file(Path(folder))
        )
        self._replace(_SERIALIZATION, "verify_integrity_manifest", _only_megatrons)
        self._replace(_WRITER, "get_write_results_queue", lambda _: ResultsQueue(async_save))
        self._replace(_ASYNC, "PersistentAsyncCaller.async_loop", lambda _: staticmethod(write_in_background))

    def remove(self) -> None:
        """Put back everything that was replaced."""
        while self._undo:
            self._undo.pop()()

    def _replace(self, module: str, path: str, make: Callable[[Any], Any]) -> None:
        owner, name = _owner(module, path)
        stock = vars(owner)[name]
        self._undo.append(partial(setattr, owner, name, stock))
        setattr(owner, name, make(stock))

    def _told(self, handler: Any) -> Any:
        return _Telling(handler, self._asked_to_end)


class _Telling:
    """Megatron's signal handler; what it gathers from all ranks is passed on."""

    def __init__(self, handler: Any, tell: Callable[[list[int]], None]) -> None:
        self._handler, self._tell = handler, tell

    def signals_received(self) -> list[int]:
        received = self._handler.signals_received()
        if any(received):
            self._tell([rank for rank, got in enumerate(received) if got])
        return received

    def __getattr__(self, name: str) -> Any:
        return getattr(self._handler, name)


class TrackerInOnePiece:
    """Megatron's door to files, except that the tracker file appears whole or not at all."""

    def __init__(self, stock: Any, saved: Callable[[Path], None]) -> None:
        self._stock, self._saved = stock, saved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stock, name)

    def open(self, path: Any, mode: str = "r", *args: Any, **kw: Any) -> Any:
        if mode == "w" and Path(path).name == TRACKER:
            return _OnePiece(Path(path), self._saved)
        return self._stock.open(path, mode, *args, **kw)


class _OnePiece(io.StringIO):
    def __init__(self, path: Path, saved: Callable[[Path], None]) -> None:
        super().__init__()
        self._path, self._saved = path, saved

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            write_atomically(self._path, self.getvalue())
            self._saved(self._path.parent)
        super().__exit__(kind, *rest)


class ResultsQueue:
    """What the writers of a checkpoint report through.

    Args:
        other_process: whether another process writes (``--async-save``).
    """

    def __init__(self, other_process: bool) -> None:
        self._other_process = other_process
        self._manager: SyncManager | None = None
        self._queue: Any = None

    def __call__(self, mp_mode: str = "spawn") -> Any:
        if self._queue is None and self._other_process:
            self._manager = SyncManager(ctx=multiprocessing.get_context(mp_mode))
            self._manager.start(initializer=die_with_parent)
            self._queue = self._manager.Queue()
        elif self._queue is None:
            self._queue = queue.Queue()
        return self._queue


def _only_megatrons(stock: Callable[[str], None]) -> Callable[[str], None]:
    """Megatron's check where the checkpoint has Megatron's own list; ours ran before anything was read."""
    return lambda folder: stock(folder) if (Path(folder) / _MEGATRONS_LIST).exists() else None


def write_in_background(*args: Any) -> None:
    """What the process of asynchronous saves runs: Megatron's own loop, on a machine that answers for CUDA."""
    die_with_parent()
    platform.prepare()
    with platform.quiet():
        loop = _owner(_ASYNC, "PersistentAsyncCaller.async_loop")[0].async_loop
    loop(*args)


def _owner(module: str, path: str) -> tuple[Any, str]:
    """The module or class that holds the last name of a dotted path, and that name."""
    owner: Any = importlib.import_module(module)
    *classes, name = path.split(".")
    for each in classes:
        owner = getattr(owner, each)
    return owner, name


def missing_names() -> list[str]:
    """The private names that the installed Megatron-Core lacks."""
    return [f"{module}.{path}" for module, path in PRIVATE_NAMES if not _is_there(module, path)]


def _is_there(module: str, path: str) -> bool:
    try:
        owner, name = _owner(module, path)
    except AttributeError:
        return False
    return name in vars(owner)
