"""Who is missing: silence is counted by the listener's clock, and a process that stood still accuses nobody."""

from __future__ import annotations

import json

from megatron_moo.training.watchdog import Silence, message


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
