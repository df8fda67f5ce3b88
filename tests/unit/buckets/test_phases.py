"""Phases and the side stream, the GPU's branch with stand-ins for streams and events."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from megatron_moo.buckets.phases import Phases, SideStream

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_seconds_on_a_cpu() -> None:
    phases = Phases(CPU)
    for _ in range(2):
        with phases("solve"):
            time.sleep(0.01)
    phases.hide(0.5)
    seconds = phases.read()
    assert set(seconds) == {"exchange", "gramian", "solve", "combine", "hidden"}
    assert 0.02 <= seconds["solve"] < 0.5 and seconds["hidden"] == 0.5 and seconds["exchange"] == 0.0


class Event:
    """A GPU's event: it knows the time only once it was waited for."""

    clock = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at, self.done = -1.0, False

    def record(self) -> None:
        self.at = Event.clock

    def synchronize(self) -> None:
        self.done = True

    def elapsed_time(self, other: Event) -> float:
        assert other.done, "elapsed_time of an event that has not happened raises"
        return other.at - self.at


def test_what_ran_beside_and_was_not_waited_for_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    phases = Phases(GPU)

    def passes(ms: float) -> None:
        Event.clock += ms

    with phases.beside():
        with phases("exchange"):
            passes(30.0)
        with phases("gramian"):
            passes(10.0)
    with phases("exchange"):  # the wait at the end of the backward pass
        passes(15.0)
    with phases("combine"):
        passes(2.0)
    seconds = phases.read()
    assert seconds == pytest.approx(
        {"exchange": 0.015, "gramian": 0.0, "solve": 0.0, "combine": 0.002, "hidden": 0.025}
    )
    assert phases.read() == seconds


def test_the_side_stream_waits_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Stream:
        def __init__(self, name: Any) -> None:
            self.name = str(name)

        def wait_stream(self, other: Stream) -> None:
            calls.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def on(stream: Stream) -> Any:
        calls.append(f"on {stream.name}")
        yield
        calls.append(f"off {stream.name}")

    main = Stream("main")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", on)
    side = SideStream(GPU)
    with side.behind():
        calls.append("work")
    side.join()
    assert side.exists
    assert calls == ["side waits for main", "on side", "work", "off side", "main waits for side"]


def test_there_is_none_on_a_cpu() -> None:
    side = SideStream(CPU)
    with side.behind():
        pass
    side.join()
    assert not side.exists
