"""The private names of Megatron-Core are where the seam looks for them, or the message says which one moved."""

from __future__ import annotations

from pathlib import Path

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
