"""The private names of Megatron-Core's checkpoints are where the seam looks for them; without traces after removal."""

from __future__ import annotations

import queue
from pathlib import Path

from megatron_moo.errors import MooError
from megatron_moo.training import seam_checkpoints
from megatron_moo.training.seam_checkpoints import PRIVATE_NAMES, CheckpointSeam, ResultsQueue
from tests.pool import RankPool


def seam_of() -> CheckpointSeam:
    return CheckpointSeam(lambda *a, **k: None, lambda path: None, lambda path: None, lambda ranks: None)


def places() -> list[object]:
    found = []
    for module, path in PRIVATE_NAMES:
        owner, name = seam_checkpoints._owner(module, path)
        found.append(vars(owner)[name])
    return found


def removal_worker(rank: int, world: int) -> tuple[bool, bool]:
    before = places()
    seam = seam_of()
    replaced = all(one is not other for one, other in zip(places(), before, strict=True))
    seam.remove()
    return replaced, all(one is other for one, other in zip(places(), before, strict=True))


def moved_worker(rank: int, world: int) -> str:
    from megatron.core.dist_checkpointing import serialization

    del serialization.save_integrity_manifest
    try:
        seam_of()
    except MooError as error:
        return str(error)
    return ""


def test_removal_leaves_no_trace(pool: RankPool) -> None:
    assert pool.run(removal_worker, 1) == [(True, True)]


def test_a_moved_name_is_named(pool: RankPool) -> None:
    assert "serialization.save_integrity_manifest is not where" in pool.run(moved_worker, 1)[0]


def test_only_the_tracker_file_is_written_in_one_piece(tmp_path: Path) -> None:
    saved: list[Path] = []
    opened: list[str] = []

    class Stock:
        def open(self, path: str, mode: str = "r") -> object:
            opened.append(path)
            return Path(path).open(mode)

    files = seam_checkpoints.TrackerInOnePiece(Stock(), saved.append)
    tracker = tmp_path / "latest_checkpointed_iteration.txt"
    with files.open(str(tracker), "w") as out:
        out.write("12")
        assert not tracker.exists(), "nothing is there before all of it is"
    assert tracker.read_text() == "12" and saved == [tmp_path] and opened == []
    with files.open(str(tracker), "r") as file:
        assert file.read() == "12"
    with files.open(str(tmp_path / "other.txt"), "w") as out:
        out.write("x")
    assert len(opened) == 2 and saved == [tmp_path]


def test_a_rank_that_writes_itself_starts_no_process() -> None:
    assert isinstance(ResultsQueue(other_process=False)(), queue.Queue)
