"""A tenfold loss of one language is flagged in its step; ordinary noise never is."""

from __future__ import annotations

import copy
import json
import math
import random

import pytest

from megatron_moo.training.spikes import SpikeWatch
from tests.faults.record import record

TAGS = ("el", "ko", "tr")


def clean(seed: int, steps: int, floor: float, noise: float) -> list[dict[str, float]]:
    """Falling losses of three languages with log-normal noise of width ``noise``."""
    rng = random.Random(seed)
    return [
        {tag: (floor + 5 * math.exp(-step / 80)) * math.exp(rng.gauss(0, noise)) for tag in TAGS}
        for step in range(steps)
    ]


@pytest.mark.parametrize(("floor", "noise"), [(2.0, 0.02), (1.0, 0.1), (0.5, 0.25), (1e-3, 0.25)])
def test_500_clean_steps_raise_no_alarm(floor: float, noise: float) -> None:
    for seed in range(20):
        watch = SpikeWatch()
        assert [flagged for losses in clean(seed, 500, floor, noise) if (flagged := watch.look(losses))] == []
    record(
        11,
        f"clean steps of simulated losses, falling to {floor:g}, noise {noise:g}, without an alarm",
        20 * 500,
    )


@pytest.mark.parametrize("step", [8, 30, 499])
def test_a_tenfold_loss_is_flagged_in_its_step(step: int) -> None:
    for seed in range(20):
        watch, found = SpikeWatch(), {}
        for at, losses in enumerate(clean(seed, 500, 1.0, 0.1)):
            if at == step:
                losses["ko"] *= 10
            if flagged := watch.look(losses):
                found[at] = flagged
        assert list(found) == [step] and list(found[step]) == ["ko"]
        assert 7 < found[step]["ko"] < 14
    record(11, f"a tenfold loss after {step} clean steps flagged in its step", 20)


# A fast decay has a wide window; the last is like a language of the quickstart, which falls from 5.6 to 0.05.
DECAYS = ((1, 10, 20), (0.2, 3, 20), (0.1, 2, 30), (2, 9, 30), (1, 5, 80), (0.5, 5, 30), (0.05, 5.5, 28))


@pytest.mark.parametrize(("floor", "height", "steps"), DECAYS)
def test_a_tenfold_loss_is_flagged_while_the_loss_falls(floor: float, height: float, steps: float) -> None:
    """From the fourth step on, also where the deviation of the window alone would hide it."""
    rng = random.Random(3)
    noisy = [(floor + height * math.exp(-at / steps)) * math.exp(rng.gauss(0, 0.05)) for at in range(300)]
    watch = SpikeWatch()
    for at, loss in enumerate(noisy):
        trial = SpikeWatch()
        trial.load_state_dict(copy.deepcopy(watch.state_dict()))
        assert bool(trial.look({"ko": 10 * loss})) == (at >= 3), at
        assert watch.look({"ko": loss}) == {}, at
    record(
        11,
        f"a tenfold loss flagged in steps 4 to 300 of a loss that falls from {floor + height:g} to {floor:g}",
        297,
    )


def test_a_resumed_run_knows_what_was_usual() -> None:
    """Through JSON, so that nothing but plain numbers is in a checkpoint; a rise that lasts is counted on too."""
    watch = SpikeWatch()
    for losses in clean(1, 50, 1.0, 0.1):
        watch.look(losses)
    for _ in range(5):
        assert watch.look({"ko": 50.0})
    resumed = SpikeWatch()
    resumed.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    for _ in range(20):
        assert resumed.look({"ko": 50.0, "el": 1.0}) == watch.look({"ko": 50.0, "el": 1.0})
    assert list(resumed.look({"el": 10.0})) == ["el"]


def test_a_lasting_rise_is_flagged_until_it_is_what_the_run_does() -> None:
    watch = SpikeWatch()
    for _ in range(50):
        assert watch.look({"ko": 1.0, "el": 2.0}) == {}
    flagged = [bool(watch.look({"ko": 10.0})) for _ in range(40)]
    assert flagged == [True] * 8 + [False] * 32


def test_what_is_no_number_is_told_elsewhere() -> None:
    watch = SpikeWatch()
    for _ in range(50):
        watch.look({"ko": 1.0})
    assert watch.look({"ko": math.nan}) == {} and watch.look({"ko": math.inf}) == {}
    assert list(watch.look({"ko": 10.0})) == ["ko"], "and does not spoil what is remembered"
