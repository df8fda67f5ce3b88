"""Who is missing: silence is counted by the listener's clock, and a process that stood still accuses nobody."""

from __future__ import annotations

import json

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training.watchdog import Silence, group_minutes, message, named_within, tick_of


def said(count: int, words: str = "step 3, language ko, all-to-all of bucket 0.1") -> str:
    return json.dumps([count, words])


def test_a_silent_rank_is_named_with_its_last_words() -> None:
    silence = Silence(tick_s=1.0)
    for now in range(8):
        silence.listen({1: said(now), 2: said(2)}, now)
    assert silence.missing(10.0) == []
    for now in range(8, 11):
        silence.listen({1: said(now), 2: said(2)}, now)
    assert silence.missing(10.0) == [(2, 10.0, "step 3, language ko, all-to-all of bucket 0.1")]
    told = message(0, silence.missing(10.0))
    assert told.startswith(
        "rank 2 was not heard of for 10 s, last in step 3, language ko, all-to-all of bucket 0.1;"
    )


def test_time_that_this_process_did_not_run_does_not_count() -> None:
    """A suspended job wakes up: for every rank the others were silent for an hour."""
    silence = Silence(tick_s=1.0)
    silence.listen({1: said(1)}, 0.0)
    silence.listen({1: said(1)}, 3600.0)
    assert silence.missing(10.0) == []
    silence.listen({1: said(2)}, 3601.0)
    assert silence.missing(1.0) == []


def test_a_rank_that_has_ended_is_not_missing() -> None:
    silence = Silence(tick_s=1.0)
    for now in range(100):
        silence.listen({1: said(5, "done")}, now)
    assert silence.missing(10.0) == []


@pytest.mark.parametrize("timeout", [1.0, 5.0, 60.0, 300.0, 600.0, 3600.0])
def test_a_stopped_rank_is_named_before_its_collective_fails(timeout: float) -> None:
    """Whenever it stops between two looks, with the time-out of collectives that a run gets by default."""
    tick = tick_of(timeout)
    for part in (0.01, 0.5, 0.99):
        silence, now = Silence(tick), 0.0
        silence.listen({1: said(1)}, now)
        stopped = now + part * tick
        while not silence.missing(timeout):
            now += tick
            silence.listen({1: said(2)}, now)
        assert timeout <= now - stopped <= named_within(timeout) < 60 * group_minutes(timeout, None)


def test_collectives_that_fail_first_are_refused() -> None:
    assert group_minutes(600.0, None) == 20, "Megatron's 10 minutes are as long as --moo-timeout is"
    assert group_minutes(5.0, None) == 10 and group_minutes(0.0, None) == 10
    assert group_minutes(600.0, 12) == 12 and group_minutes(0.0, 1) == 1
    for equal in (1, 10):
        with pytest.raises(MooError, match=f"collectives fail after {equal} min, before .*--moo-timeout"):
            group_minutes(60.0 * equal, equal)
