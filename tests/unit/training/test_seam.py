"""The private names of Megatron-Core are where the seam looks for them, or the message says which one moved."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_moo.buckets import seam
from megatron_moo.errors import MooError
from tests.pool import RankPool


def names_worker(rank: int, world: int) -> list[str]:
    seam.check_version()
    return seam.missing_names()


def moved_worker(rank: int, world: int) -> tuple[list[str], str]:
    import megatron.training.training as training

    del training.training_log
    try:
        seam.check_version()
    except MooError as error:
        return seam.missing_names(), str(error)
    return seam.missing_names(), ""


def removal_worker(rank: int, world: int) -> bool:
    """Whether removing the seam leaves Megatron as it was."""
    import importlib

    places = [
        (importlib.import_module(module), name) for module, name in seam.PRIVATE_NAMES if "." not in name
    ]
    before = [getattr(place, name) for place, name in places]

    class Step:
        passes = ()

    patched = seam.Seam(Step(), lambda: 0)  # type: ignore[arg-type]
    patched.on_training_log(lambda **kw: None)
    patched.carry_state(dict, lambda state: None)
    patched.at_the_end(lambda: None, lambda: None)
    patched.after_evaluation(lambda model: None)
    changed = [getattr(place, name) for place, name in places] != before
    patched.remove()
    return changed and [getattr(place, name) for place, name in places] == before


def test_names_are_there(pool: RankPool) -> None:
    assert pool.run(names_worker, 1) == [[]]


def test_a_moved_name_is_named(pool: RankPool) -> None:
    [(missing, message)] = pool.run(moved_worker, 1)
    assert missing == ["megatron.training.training.training_log"]
    assert "megatron.training.training.training_log is not where" in message


def test_removal_leaves_no_trace(pool: RankPool) -> None:
    assert pool.run(removal_worker, 1) == [True]


def test_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "version", lambda name: "0.20.0")
    with pytest.raises(MooError, match=r"0\.20\.0 is installed, megatron_moo works with 0\.19\.2"):
        seam.check_version()


def test_private_names_stand_in_one_file() -> None:
    """No other file of the package reaches for an underscored name of Megatron."""
    import re

    pattern = re.compile(r"megatron\.(core|training)[\w.]*(\._[a-z]| import _)|param_and_grad_buffer")
    package = Path(seam.__file__).parents[1]
    guilty = [
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if path.name != "seam.py" and pattern.search(path.read_text(encoding="utf-8"))
    ]
    assert guilty == []


def ending_worker(rank: int, world: int) -> dict[str, list[str]]:
    """What the seam says of a ``pretrain()`` that trains to its end, is told to leave, or fails."""
    from megatron.training import one_logger_utils, training

    said: dict[str, list[str]] = {}

    def trains(way: str) -> None:
        one_logger_utils.finish() if way == "left" else None  # as Megatron does before it leaves
        if way != "ended":
            raise SystemExit(0) if way == "left" else RuntimeError(way)

    for way in ("ended", "left", "failed"):
        words = said[way] = []
        training.train, one_logger_utils.finish = trains, lambda: None
        patched = seam.Seam(SimpleNamespace(passes=()), lambda: 0)  # type: ignore[arg-type]
        patched.at_the_end(lambda w=words: w.append("ended"), lambda w=words: w.append("left"))  # type: ignore[misc]
        with contextlib.suppress(SystemExit, RuntimeError):
            training.train(way)
            assert not words, "an evaluation and a checkpoint are still to come"
            one_logger_utils.finish()
        patched.remove()
    return said


def test_only_a_run_that_trained_to_its_end_is_complete(pool: RankPool) -> None:
    assert pool.run(ending_worker, 1) == [{"ended": ["ended"], "left": ["left"], "failed": []}]


def evaluations_worker(rank: int, world: int) -> list[list[str]]:
    """Whose functions Megatron's evaluation calls, by what a script gave."""
    from megatron.training import training

    called: list[str] = []

    def stock(*args: Any, non_loss_data_func: Any = None, **kw: Any) -> None:
        if non_loss_data_func is not None:
            non_loss_data_func("model")

    def ours(model: str) -> None:
        called.append("ours")

    training.evaluate_and_print_results = stock
    seam.Seam(SimpleNamespace(passes=()), lambda: 0).after_evaluation(ours)  # type: ignore[arg-type]
    found = []
    for process, given in (
        (None, None),
        (None, ours),
        (None, lambda model: called.append("theirs")),
        (print, None),
    ):
        training.evaluate_and_print_results("", None, None, [], 1, process, None, non_loss_data_func=given)
        found.append(called.copy())
        called.clear()
    return found


def test_validation_losses_are_told_whatever_a_script_gives(pool: RankPool) -> None:
    assert pool.run(evaluations_worker, 1) == [[["ours"], ["ours"], ["ours", "theirs"], []]]
