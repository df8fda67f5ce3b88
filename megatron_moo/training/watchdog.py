"""Find out which rank is missing: a collective that waits for ever says neither rank nor place.

Every rank says in the store of the process group, several times within the time-out, where it is (:data:`DOING`). A
rank that says nothing for that long while others do is stopped, or its machine is gone: the others say so and leave. A
rank that is only slow goes on saying where it is, and Megatron's own ``--distributed-timeout-minutes`` is for it: that
has to be longer, or a collective fails before anybody is named (:func:`group_minutes`).
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn

from megatron_moo.buckets.doing import DOING
from megatron_moo.errors import MooError

# A line that begins so is a fault of the machine, not of the user: the launcher may start the run again.
FAULT = "megatron-moo: fault: "
EXIT_STATUS = 70
# How gloo and NCCL say that a peer does not answer.
_LOST = re.compile(r"[Cc]onnection (closed|reset)|Timed out waiting|Broken pipe|NCCL|process group watchdog")
_PREFIX = "megatron_moo/heard"
_DONE = "done"
_OPERATION_S = 5.0
# What Megatron takes for --distributed-timeout-minutes where nobody gave one.
STOCK_MINUTES = 10


def tick_of(timeout_s: float) -> float:
    """Seconds between two looks at the others."""
    return min(max(timeout_s / 10, 0.2), 30.0)


def named_within(timeout_s: float) -> float:
    """Seconds in which a stopped rank, or a stopped store, is named at the latest.

    The last word may be heard a tick after it was said, and the listener looks once a tick.
    """
    return timeout_s + 3 * tick_of(timeout_s) + _OPERATION_S


def group_minutes(timeout_s: float, given: int | None) -> int:
    """``--distributed-timeout-minutes``: long enough that a stopped rank is named before a collective fails.

    Args:
        timeout_s: see ``--moo-timeout``; 0 for no watchdog.
        given: what the user asked for, or None.

    Returns:
        ``given``, or twice ``timeout_s`` and at least Megatron's default.

    Raises:
        MooError: when ``given`` is too short.
    """
    if given is None:
        return max(STOCK_MINUTES, math.ceil(2 * timeout_s / 60))
    if timeout_s > 0 and given * 60 < named_within(timeout_s):
        raise MooError(
            f"collectives fail after {given} min, before a rank that is silent for {timeout_s:g} s (--moo-timeout) is "
            "named",
            "--distributed-timeout-minutes",
            f"leave it out, give {math.ceil(named_within(timeout_s) / 60)} or more, or a shorter --moo-timeout",
        )
    return given


@dataclass
class Heard:
    """What a rank said last, and for how long it has said nothing since."""

    said: str = ""
    silent_s: float = 0.0


class Silence:
    """Who has said nothing for how long, by the listener's own clock.

    Args:
        tick_s: how often the listener looks. More time between two looks than twice that is not counted: then it was
            this process (or all of them, by a suspended job) that stood still.
    """

    def __init__(self, tick_s: float) -> None:
        self._most = 2 * tick_s
        self._heard: dict[int, Heard] = {}
        self._last: float | None = None

    def listen(self, said: dict[int, str], now: float) -> None:
        """Take what every rank said, at time ``now`` (s)."""
        passed = 0.0 if self._last is None else min(now - self._last, self._most)
        self._last = now
        for rank, text in said.items():
            heard = self._heard.setdefault(rank, Heard(text))
            heard.silent_s = heard.silent_s + passed if text == heard.said else 0.0
            heard.said = text

    def missing(self, timeout_s: float) -> list[tuple[int, float, str]]:
        """Rank, seconds of silence and last words of those that were silent too long and did not say that they end."""
        return [
            (rank, heard.silent_s, _words(heard.said))
            for rank, heard in sorted(self._heard.items())
            if heard.silent_s >= timeout_s and _words(heard.said) != _DONE
        ]


def message(rank: int, missing: list[tuple[int, float, str]]) -> str:
    """The line that ``rank`` leaves with."""
    gone, seconds, words = missing[0]
    more = f" (and {len(missing) - 1} others)" if len(missing) > 1 else ""
    return f"rank {gone}{more} was not heard of for {seconds:.0f} s, last in {words}; rank {rank} is in {DOING.line()}"


class Watchdog:
    """A thread that says where this rank is and listens to the others; :meth:`end` before the process group goes.

    Args:
        rank, world: of this process.
        timeout_s: see ``--moo-timeout``.
        store: makes a store of its own for a thread (a connection serves one call at a time).
        leave: called with the message when a rank is missing.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        timeout_s: float,
        store: Callable[[], Any],
        leave: Callable[[str], None],
    ) -> None:
        self._rank, self._world, self._timeout, self._leave = rank, world, timeout_s, leave
        self._tick = tick_of(timeout_s)
        self._store = store
        self._ended = threading.Event()
        self._answered = time.monotonic()
        self._count = 0
        self._threads = [threading.Thread(target=f, daemon=True) for f in (self._talk, self._watch_store)]

    def begin(self) -> None:
        """Start listening."""
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Say that this rank ends as it should, and listen no more."""
        self._ended.set()
        self._threads[0].join(self._tick + _OPERATION_S)

    def _talk(self) -> None:
        silence = Silence(self._tick)
        try:
            store = self._store()
            self._say(store, DOING.line())
            while not self._ended.wait(self._tick):
                self._say(store, DOING.line())
                said = self._listen(store)
                self._answered = time.monotonic()
                silence.listen(said, self._answered)
                if (missing := silence.missing(self._timeout)) and not self._ended.is_set():
                    self._leave(message(self._rank, missing))
            self._say(store, _DONE)
        except (RuntimeError, OSError):
            # The process that keeps the store has ended; whoever waits for it hears of it from its collective.
            self._ended.set()

    def _say(self, store: Any, words: str) -> None:
        self._count += 1
        store.set(f"{_PREFIX}/{self._rank}", json.dumps([self._count, words]))

    def _listen(self, store: Any) -> dict[int, str]:
        """What every other rank said last; nothing where a rank was stopped before its first word."""
        keys = {rank: f"{_PREFIX}/{rank}" for rank in range(self._world) if rank != self._rank}
        if store.check(list(keys.values())):
            return dict(
                zip(keys, (text.decode() for text in store.multi_get(list(keys.values()))), strict=True)
            )
        return {rank: store.get(key).decode() if store.check([key]) else "" for rank, key in keys.items()}

    def _watch_store(self) -> None:
        """The store of a stopped process accepts words and never answers."""
        waited, before = 0.0, time.monotonic()
        answered = self._answered
        while not self._ended.wait(self._tick):
            now = time.monotonic()
            waited = 0.0 if self._answered != answered else waited + min(now - before, 2 * self._tick)
            answered, before = self._answered, now
            if waited >= self._timeout + 2 * self._tick:
                words = "the rank that keeps the store (rank 0, unless torchrun keeps it)"
                self._leave(
                    f"{words} was not heard of for {waited:.0f} s; rank {self._rank} is in {DOING.line()}"
                )


def _words(said: str) -> str:
    return json.loads(said)[1] if said else "starting"


def own_store() -> Any:
    """A connection of its own to the store that ``init_process_group`` met in."""
    from torch.distributed import PrefixStore, TCPStore

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(
        host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_OPERATION_S)
    )
    # torchrun starts ranks anew with the same store.
    return PrefixStore(f"restart{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def peer_is_lost(error: BaseException) -> bool:
    """Whether a collective failed because another rank is gone."""
    return isinstance(error, RuntimeError) and _LOST.search(str(error)) is not None


def short(error: BaseException) -> str:
    """A collective's error without the place in gloo's sources and without its advice."""
    return re.sub(r"^\[\S+\] ", "", str(error).splitlines()[0]).partition(". ")[0]


def leave(text: str) -> NoReturn:
    """End this process at once: its main thread is in a collective that will not end."""
    sys.stderr.write(f"{FAULT}{text}\n")
    sys.stderr.flush()
    os._exit(EXIT_STATUS)
