"""Ranks are killed, stopped and asked to end: the run goes on bit for bit, says who is missing, and leaves nobody."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from megatron_moo.training import integrity
from megatron_moo.training.integrity import step_folder
from tests.faults.launched import Launched, gone, stopped
from tests.faults.record import record
from tests.faults.tiny import Tiny, events_of, losses_of, tensors_worker
from tests.pool import RankPool

STEPS = 60
FLAGS = ("--train-iters", str(STEPS), "--save-interval", "4")


@pytest.fixture(scope="module")
def tiny(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A folder in which the run ``whole`` was never interrupted."""
    tiny = Tiny(pool, tmp_path_factory.mktemp("processes"))
    tiny.run("whole", *FLAGS)
    return tiny


def same_as_whole(tiny: Tiny, run: Path) -> None:
    """Losses of every step and every tensor at the end, bit for bit."""
    assert losses_of(run) == losses_of(tiny.folder / "whole")
    mine, theirs = (
        tiny.pool.run(tensors_worker, 1, step_folder(folder / "checkpoints", STEPS))[0]
        for folder in (run, tiny.folder / "whole")
    )
    assert mine.keys() == theirs.keys() and len(mine) > 20
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


def kill_at_random(launched: Launched, times: int, steps: range, rng: random.Random) -> float:
    """kill -9 of a random rank after random steps; the longest time in s until its peer was gone too."""
    slowest = 0.0
    for number, step in enumerate(sorted(rng.sample(steps, times)), 1):
        launched.wait_for_step(step, begins=number)
        victim = rng.randrange(2)
        pids = [launched.rank(0), launched.rank(1)]
        os.kill(pids[victim], signal.SIGKILL)
        peer = pids[1 - victim]
        slowest = max(slowest, launched.wait_until(lambda pid=peer: gone(pid), "end of the other rank", 20))
    return slowest


@pytest.mark.timeout(600)
def test_killed_three_times_then_asked_to_end(tiny: Tiny) -> None:
    """One run through faults 1, 4 and 8: every start costs ten seconds, so they share them."""
    run, rng = tiny.folder / "hunted", random.Random(1)
    with Launched(tiny.recipe, run, *FLAGS, "--max-restarts", "3") as launched:
        slowest = kill_at_random(launched, 3, range(2, 36), rng)
        assert slowest < 5
        at = rng.randrange(38, 44)
        launched.wait_for_step(at, begins=4)
        os.kill(launched.rank(rng.randrange(2)), signal.SIGTERM)
        started = time.monotonic()
        assert launched.end() == 128 + signal.SIGTERM, launched.err
        assert time.monotonic() - started < 25
        assert launched.out.count("starting again from step") == 3
        assert "rank" in launched.out and "was killed by SIGKILL" in launched.out
        assert "stopped by SIGTERM before the last step" in launched.out
        assert launched.processes() == []
    saved = integrity.complete_steps(run / "checkpoints")[-1]
    assert saved == max(losses_of(run)) >= at, "at the step that was under way"
    integrity.verify(step_folder(run / "checkpoints", saved))
    assert [event["ranks"] for event in events_of(run, "signal")] in ([[0]], [[1]])

    assert tiny.train(tiny.plan("hunted", *FLAGS)) == [0, 0]
    same_as_whole(tiny, run)
    record(1, "kill -9 of a random rank, then bit for bit the uninterrupted run", 3)
    record(4, "SIGTERM to one rank: all saved, status 143, no process left", 1)
    record(8, "killed ranks whose peer was gone within 5 s, no process left", 3, slowest_s=round(slowest, 2))


@pytest.mark.slow
def test_the_launcher_is_asked_to_end(tiny: Tiny) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        run = tiny.folder / f"asked-{number}"
        with Launched(tiny.recipe, run, *FLAGS) as launched:
            launched.wait_for_step(6)
            launched.process.send_signal(number)
            started = time.monotonic()
            assert launched.end() == 128 + number, launched.err
            assert time.monotonic() - started < 25
            assert launched.processes() == []
        saved = integrity.complete_steps(run / "checkpoints")[-1]
        assert saved == max(losses_of(run)) >= 6
        integrity.verify(step_folder(run / "checkpoints", saved))
    assert tiny.train(tiny.plan(run.name, *FLAGS)) == [0, 0]
    same_as_whole(tiny, run)
    record(4, "SIGTERM, SIGUSR1 and SIGINT to the launcher: saved, no process left", 3)


def test_a_stopped_rank_is_named(tiny: Tiny) -> None:
    """It stops inside the exchange: both ranks are in the all-to-all of one bucket."""
    run = tiny.folder / "stopped"
    flags = ("--train-iters", "100000", "--moo-timeout", "5")
    with Launched(tiny.recipe, run, *flags, grace_s=1, broken=("stop_in_exchange", 20, 1, 1.5)) as launched:
        launched.wait_for_step(19)
        pids = [launched.rank(0), launched.rank(1)]
        launched.wait_until(lambda: stopped(pids[1]), "stop of rank 1", 20)
        seconds = launched.wait_until(lambda: gone(pids[0]), "end of the other rank", 60)
        assert 3 < seconds <= 15, "nobody is given up before the time-out, nor long after it"
        assert launched.end() == 2
        place = r"step 20, language (?:el|ko|tr), all-to-all of bucket (\S+?)"
        told = rf"error: training: .*rank 1 was not heard of for [5-7] s, last in {place}; rank 0 is in {place}[ ;]"
        found = re.search(told, launched.err)
        assert found is not None and found[1] == found[2], launched.err
        assert launched.err.count("\n") == 1
        assert launched.processes() == []
    record(
        8,
        "a stopped rank named with step, language, bucket and collective",
        1,
        noticed_after_s=round(seconds, 1),
    )


@pytest.mark.slow
def test_nothing_outlives_a_launcher_that_was_killed(tiny: Tiny) -> None:
    """kill -9 of ``megatron-moo train`` itself: its ranks save and leave."""
    run = tiny.folder / "orphaned"
    with Launched(tiny.recipe, run, *FLAGS, "--train-iters", "100000") as launched:
        launched.wait_for_step(5)
        os.kill(launched.process.pid, signal.SIGKILL)
        launched.process.wait()
        started = time.monotonic()
        while launched.processes():
            assert time.monotonic() - started < 25, launched.processes()
            time.sleep(0.1)
    saved = integrity.complete_steps(run / "checkpoints")[-1]
    assert saved == max(losses_of(run))
    integrity.verify(step_folder(run / "checkpoints", saved))
    record(4, "kill -9 of the launcher: the ranks saved, no process left", 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_twenty_times(tiny: Tiny) -> None:
    slowest = 0.0
    for number in range(4):
        run, rng = tiny.folder / f"hunted-{number}", random.Random(20 + number)
        with Launched(tiny.recipe, run, *FLAGS, "--max-restarts", "5") as launched:
            slowest = max(slowest, kill_at_random(launched, 5, range(2, STEPS - 2), rng))
            assert launched.end(300) == 0, launched.err
            assert launched.out.count("starting again from step") == 5
            assert launched.processes() == []
        same_as_whole(tiny, run)
    assert slowest < 5
    record(1, "four runs, kill -9 of a random rank, then the same", 20, slowest_s=round(slowest, 2))
