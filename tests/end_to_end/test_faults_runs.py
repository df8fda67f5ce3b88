"""Ranks that disagree, runs that go on at another layout, a language that goes wrong: told by name, or the same run."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.record import record
from tests.faults.tiny import Tiny, events_of, losses_of, steps_of, write_recipe
from tests.pool import RankError, RankPool


@pytest.fixture(scope="module")
def tiny(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(pool, tmp_path_factory.mktemp("runs"))


# Fault 9 --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agreed(tiny: Tiny) -> list[str]:
    """A command line that all ranks should have."""
    return tiny.plan("agreed")


DISAGREE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("method", ("--moo-method", "mgda"), r"--moo-method is cagrad on rank 0, mgda on rank 1"),
    ("option", ("--moo-option", "c=0.1"), r"--moo-option is nothing on rank 0, c=0\.1 on rank 1"),
    ("block", ("--moo-block", "model"), r"--moo-block is layer on rank 0, model on rank 1"),
    ("seed", ("--seed", "4321"), r"--seed is 1234 on rank 0, 4321 on rank 1"),
    ("buckets", ("--ddp-bucket-size", "9000"), r"--ddp-bucket-size is None on rank 0, 9000 on rank 1"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "flags", "told"),
    [pytest.param(*row, marks=() if row[0] in ("method", "seed") else pytest.mark.slow) for row in DISAGREE],
    ids=[name for name, _, _ in DISAGREE],
)
def test_ranks_that_disagree_are_named(
    tiny: Tiny, agreed: list[str], name: str, flags: tuple[str, ...], told: str
) -> None:
    with pytest.raises(RankError) as caught:
        tiny.train(agreed, odd={1: flags})
    assert len(caught.value.errors) == 2
    for text in caught.value.errors.values():
        assert re.search("MooError: start: the ranks disagree: " + told, text), text
    record(9, f"ranks with another {name}", 1)


def test_ranks_with_other_languages_are_named(tiny: Tiny, agreed: list[str], tmp_path: Path) -> None:
    write_recipe(tmp_path, tags="el ko")
    with pytest.raises(RankError, match=r"objectives is 3: el ko tr on rank 0, 2: el ko on rank 1"):
        tiny.train(agreed, odd={1: ("--languages", str(tmp_path / "languages.yaml"))})
    text = (tiny.folder / "languages.yaml").read_text().replace("languages:", "languages: # mine", 1)
    (tmp_path / "languages.yaml").write_text(text)
    with pytest.raises(RankError, match=r"languages \(SHA-256 of the manifest\) is [0-9a-f]+ on rank 0"):
        tiny.train(agreed, odd={1: ("--languages", str(tmp_path / "languages.yaml"))})
    record(9, "ranks with another K or another manifest", 2)


# Fault 5 --------------------------------------------------------------------------------------------------

BEGUN, MORE = 4, 10
LAYOUTS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    ("dp 1", 1, ()),
    ("dp 4", 4, ()),
    ("tp 2", 2, ("--tensor-model-parallel-size", "2")),
    ("pp 2", 2, ("--pipeline-model-parallel-size", "2")),
)


@pytest.fixture(scope="module")
def begun(tiny: Tiny) -> Path:
    """A run that stopped at step 4 on two ranks with two slots, and ``other``, which went on there."""
    length = ("--train-iters", str(BEGUN + MORE))
    run = tiny.run("begun", *length, "--exit-interval", str(BEGUN))
    shutil.copytree(run, tiny.folder / "went-on")
    tiny.run("went-on", *length)
    return run


@pytest.mark.parametrize(
    ("name", "ranks", "flags"),
    [pytest.param(*row, marks=() if row[0] in ("dp 1", "tp 2") else pytest.mark.slow) for row in LAYOUTS],
    ids=[name for name, _, _ in LAYOUTS],
)
def test_a_run_goes_on_at_another_layout(
    tiny: Tiny, begun: Path, name: str, ranks: int, flags: tuple[str, ...]
) -> None:
    run = begun.with_name(name.replace(" ", "-"))
    shutil.copytree(begun, run)
    argv = tiny.plan(run.name, "--train-iters", str(BEGUN + MORE), *flags, ranks=ranks)
    assert tiny.train(argv, ranks=ranks) == [0] * ranks
    here, there = steps_of(run), steps_of(tiny.folder / "went-on")
    assert sorted(here) == sorted(there) == list(range(1, BEGUN + MORE + 1))
    worst = 0.0
    for step in range(BEGUN + 1, BEGUN + MORE + 1):
        assert here[step]["samples"] == there[step]["samples"]
        assert here[step]["tokens"] == there[step]["tokens"]
        for tag, loss in there[step]["loss"].items():
            worst = max(worst, abs(here[step]["loss"][tag] - loss) / loss)
    assert worst < 1e-5
    record(
        5, f"{MORE} steps after a resume at {name}: same samples, losses within 1e-5", 1, worst=f"{worst:.1e}"
    )


def test_another_number_of_places_is_refused_unless_asked_for(tiny: Tiny, begun: Path) -> None:
    run = begun.with_name("places")
    shutil.copytree(begun, run)
    flags = ("--train-iters", "6", "--moo-slots", "2")
    with pytest.raises(
        RankError, match=r"its run has 4 places a step \(slots x lanes\), these settings have 2"
    ):
        tiny.plan(run.name, *flags, ranks=1)
    argv = tiny.plan(run.name, *flags, "--moo-other-places", ranks=1)
    assert "--moo-other-places" in argv  # trained in tests/end_to_end/test_data.py
    record(5, "another L refused unless it is asked for", 1)
    # Megatron-style scripts make no plan: what the checkpoint says is held against the flags where it is loaded.
    unasked = [word for word in argv if word != "--moo-other-places"]
    with pytest.raises(
        RankError, match=r"checkpoints: its run has 4 places a step .*, these settings have 2"
    ):
        tiny.train(unasked, ranks=1)
    record(5, "another L refused where no plan was made", 1)


# Fault 8 (a rank that is stopped: tests/end_to_end/test_faults_processes.py) --------------------------------


def minutes_worker(rank: int, world: int, argv: list[str]) -> int:
    """``--distributed-timeout-minutes`` of a script that calls ``install()``."""
    from megatron.training.arguments import parse_and_validate_args

    from megatron_moo.training import platform
    from megatron_moo.training.arguments import add_moo_arguments
    from megatron_moo.training.install import install

    platform.prepare()
    sys.argv = ["rank", *argv]
    args = parse_and_validate_args(extra_args_provider=add_moo_arguments)
    install(args)
    return args.distributed_timeout_minutes


def test_collectives_wait_longer_than_the_watchdog_where_no_plan_was_made(
    tiny: Tiny, agreed: list[str]
) -> None:
    at = agreed.index("--distributed-timeout-minutes")
    script = agreed[:at] + agreed[at + 2 :]
    assert tiny.pool.run(minutes_worker, 1, script) == [20]
    with pytest.raises(
        RankError, match="--distributed-timeout-minutes: collectives fail after 2 min, before"
    ):
        tiny.pool.run(
            minutes_worker, 1, [*script, "--moo-timeout", "120", "--distributed-timeout-minutes", "2"]
        )


# Fault 11 -------------------------------------------------------------------------------------------------


def test_a_tenfold_loss_is_flagged_in_its_step(tiny: Tiny) -> None:
    assert tiny.train(tiny.plan("spike", "--train-iters", "14"), ("multiply_loss", 12, "ko", 10.0)) == [0, 0]
    flagged = {
        step: line["spikes"] for step, line in steps_of(tiny.folder / "spike").items() if line["spikes"]
    }
    assert list(flagged) == [12] and list(flagged[12]) == ["ko"]
    assert 8 < flagged[12]["ko"] < 12
    record(11, "a tenfold loss of one language flagged in its step", 1)


@pytest.mark.slow
def test_a_tenfold_loss_right_after_a_resume_is_flagged(tiny: Tiny) -> None:
    length = ("--train-iters", "12")
    tiny.run("resumed-spike", *length, "--exit-interval", "8")
    assert tiny.train(tiny.plan("resumed-spike", *length), ("multiply_loss", 9, "ko", 10.0)) == [0, 0]
    steps = steps_of(tiny.folder / "resumed-spike")
    assert {step: list(line["spikes"]) for step, line in steps.items() if line["spikes"]} == {9: ["ko"]}
    record(11, "a tenfold loss in the first step after a resume flagged", 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_real_steps_raise_no_alarm(tiny: Tiny) -> None:
    argv = tiny.plan("long", "--train-iters", "500", "--save-interval", "1000")
    assert tiny.train(argv, timeout=800) == [0, 0]
    steps = steps_of(tiny.folder / "long")
    assert len(steps) == 500 and steps[500]["loss"]["ko"] < steps[1]["loss"]["ko"] - 1
    assert [step for step, line in steps.items() if line["spikes"]] == []
    record(11, "clean steps of a real run without an alarm", 500)


# Fault 10 (the update itself: tests/distributed/test_bad_gradients.py) --------------------------------------


def test_a_bad_language_is_logged_with_its_step(tiny: Tiny) -> None:
    argv = tiny.plan("bad", "--train-iters", "20")
    assert tiny.train(argv, ("bad_gradient", "ko", float("nan"), range(3, 6))) == [0, 0]
    lines = steps_of(tiny.folder / "bad")
    assert {step: line["moo"]["dropped"] for step, line in lines.items() if line["moo"]["dropped"]} == {
        3: ["ko"], 4: ["ko"], 5: ["ko"],
    }  # fmt: skip
    assert all(w["ko"] == 0.0 for w in lines[4]["moo"]["weights"].values())
    assert losses_of(tiny.folder / "bad")[20]["ko"] < losses_of(tiny.folder / "bad")[1]["ko"]
    record(10, "a bad language logged with its step and left out", 3)


@pytest.mark.slow
def test_ten_bad_steps_end_the_run(tiny: Tiny) -> None:
    argv = tiny.plan("worse", "--train-iters", "20")
    with pytest.raises(RankError) as caught:
        tiny.train(argv, ("bad_gradient", "tr", float("inf"), range(2, 30)))
    for text in caught.value.errors.values():
        assert re.search(
            r"MooError: step 10: the gradient of tr was not finite for 10 steps in a row", text
        ), text
    assert max(losses_of(tiny.folder / "worse")) == 10
    record(10, "ten bad steps in a row end a whole run", 1)


def test_the_events_of_a_run_are_readable(begun: Path) -> None:
    saves: list[dict[str, Any]] = events_of(begun, "save")
    assert [save["step"] for save in saves] == [BEGUN] and saves[0]["seconds"] > 0
