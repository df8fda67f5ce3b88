"""Phases and the side stream, the GPU's branch with stand-ins for streams and events."""

from __future__ import annotations

import time
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megatron_moo.buckets.blocks import BucketPlan, Kind, Segment
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.exchange import Exchange
from megatron_moo.buckets.phases import Phases, SideStream
from megatron_moo.buckets.step import MooStep
from megatron_moo.moo import make_method


class OneEach:
    """Two lanes, an objective each."""

    def assignment(self, step: int) -> list[list[int]]:
        return [[0, 1]]


def nothing(*args: Any, **kw: Any) -> None: ...


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
    with phases.join():  # the wait at the end of the backward pass
        passes(15.0)
    with phases("exchange"):  # the reduction of the Gramians, which nothing hides and which hides nothing
        passes(7.0)
    with phases("combine"):
        passes(2.0)
    seconds = phases.read()
    assert seconds == pytest.approx(
        {"exchange": 0.022, "gramian": 0.0, "solve": 0.0, "combine": 0.002, "hidden": 0.025}
    )
    assert phases.read() == seconds


@pytest.mark.parametrize("async_op", [True, False])
def test_an_exchange_is_joined_once(monkeypatch: pytest.MonkeyPatch, async_op: bool) -> None:
    """On a GPU the wait for the side stream is part of ``exchange`` and off ``hidden``, wherever it happens."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    step = MooStep(MooConfig("mean", wire="bf16"), make_method("mean"), ["a", "b"], OneEach())
    grad = torch.ones(8)
    plan = BucketPlan("bucket", grad, 0, (0, 1), (Segment(0, 4, 0, Kind.OWN),))
    step.place([plan], ["block"], "", 0, counts_tokens=True)
    exchange = Exchange(step, nothing, nothing)
    exchange.register([plan])

    def travels(received: torch.Tensor, sent: torch.Tensor, **kw: Any) -> Any:
        Event.clock += 10.0
        received.copy_(sent)
        return SimpleNamespace(wait=nothing)

    class Side:
        exists = True

        def behind(self) -> Any:
            return nullcontext()

        def join(self) -> None:
            Event.clock += 4.0

    monkeypatch.setattr(torch.distributed, "all_to_all_single", travels)
    monkeypatch.setattr("megatron_moo.buckets.exchange.SideStream", lambda device: Side())
    step.begin(0)
    step.phases = Phases(GPU)
    step.begin_pass(step.passes[0])
    exchange(plan.own, grad, async_op=async_op)
    if async_op:
        exchange.join()
    with step.phases("exchange"):
        Event.clock += 7.0
    seconds = step.phases.read()
    assert seconds["exchange"] == pytest.approx(0.011) and seconds["hidden"] == pytest.approx(0.006)


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
