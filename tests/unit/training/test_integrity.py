"""Checkpoints on disk: completeness, damage, owners, and deletion that always leaves something to go on from."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training import integrity
from megatron_moo.training.integrity import CHECKSUMS, TRACKER, step_folder
from tests.faults.record import record


def save(folder: Path, step: int, complete: bool = True) -> Path:
    """A checkpoint as Megatron leaves it, with our list when ``complete``."""
    checkpoint = step_folder(folder, step)
    checkpoint.mkdir(parents=True)
    rng = random.Random(step)
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp"):
        (checkpoint / name).write_bytes(rng.randbytes(3000))
    if complete:
        (checkpoint / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
        integrity.write_checksums(checkpoint)
    return checkpoint


def test_the_list_is_one_that_sha256sum_checks(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    listed = integrity.read_checksums(checkpoint)
    assert listed["__0_0.distcp"] == hashlib.sha256((checkpoint / "__0_0.distcp").read_bytes()).hexdigest()
    assert set(listed) == {path.name for path in checkpoint.iterdir()} - {CHECKSUMS}
    command = ["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS]
    assert subprocess.run(command, cwd=checkpoint, check=False).returncode == 0
    (checkpoint / ".metadata").write_bytes(b"other")
    assert subprocess.run(command, cwd=checkpoint, capture_output=True, check=False).returncode != 0


def test_what_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint = save(tmp_path, 10)
    integrity.verify(checkpoint)
    (checkpoint / "__0_0.distcp").write_bytes(b"other")
    with pytest.raises(MooError, match=r"iter_0000010/__0_0\.distcp: is damaged: it is not what was saved"):
        integrity.verify(checkpoint)
    integrity.write_checksums(checkpoint)
    (checkpoint / "__1_0.distcp").unlink()
    with pytest.raises(MooError, match=r"iter_0000010/__1_0\.distcp: is missing; .* go on from step 5"):
        integrity.verify(checkpoint)


@pytest.mark.parametrize(
    ("torn", "expected"), [("", 10), ("1", 10), ("5", 10), ("x\0y", 10), ("10", 10), (None, 10)]
)
def test_the_newest_complete_checkpoint_is_chosen_whatever_the_tracker_says(
    tmp_path: Path, torn: str | None, expected: int
) -> None:
    for step, complete in ((5, True), (10, True), (15, False)):
        save(tmp_path, step, complete)
    if torn is not None:
        (tmp_path / TRACKER).write_text(torn)
    assert integrity.choose_step(tmp_path) == expected
    assert integrity.incomplete(tmp_path) == ["iter_0000015"]


def test_nothing_complete(tmp_path: Path) -> None:
    assert integrity.choose_step(tmp_path) is None
    save(tmp_path, 5, complete=False)
    assert integrity.choose_step(tmp_path) is None, "killed in its first save: a new start"
    (tmp_path / TRACKER).write_text("5")
    with pytest.raises(MooError, match="names step 5, which is not complete, and no other checkpoint is"):
        integrity.choose_step(tmp_path)
    (tmp_path / TRACKER).write_text("")
    with pytest.raises(MooError, match=f"{TRACKER}: is damaged, and no other checkpoint is complete"):
        integrity.choose_step(tmp_path)


def test_megatrons_own_checkpoints_count_where_the_tracker_names_them(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 20, complete=False)
    (checkpoint / "metadata.json").write_text("{}")
    assert integrity.choose_step(tmp_path) is None
    (tmp_path / TRACKER).write_text("20\n")
    assert integrity.choose_step(tmp_path) == 20
    (tmp_path / TRACKER).write_text("release")
    assert integrity.choose_step(tmp_path) == "release"


def test_pruning_keeps_the_newest_and_removes_halves(tmp_path: Path) -> None:
    for step in (1, 2, 4, 5):
        save(tmp_path, step)
    save(tmp_path, 3, complete=False)
    save(tmp_path, 6, complete=False)  # a save under way
    assert integrity.prune(tmp_path, 2) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"iter_000000{n}" for n in (4, 5, 6)]
    for step in (4, 5):
        integrity.verify(step_folder(tmp_path, step))


def test_a_failing_deletion_costs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, calls = shutil.rmtree, []

    def fail_once(path: Path, *args: object, **kw: object) -> None:
        calls.append(path)
        if len(calls) == 3:
            (path / "__0_0.distcp").unlink()  # halfway
            raise OSError(16, "Device or resource busy")
        stock(path)

    monkeypatch.setattr(shutil, "rmtree", fail_once)
    failures = []
    for step in range(1, 11):
        save(tmp_path, step)
        failures += integrity.prune(tmp_path, 2)
        steps = integrity.complete_steps(tmp_path)
        assert steps == [n for n in (step - 1, step) if n > 0], "what is half deleted does not count"
        for kept in steps:
            integrity.verify(step_folder(tmp_path, kept))
    assert len(failures) == 1 and "could not be deleted (Device or resource busy)" in failures[0]
    assert not list(tmp_path.glob(".deleting-*")), "the next deletion takes what was left over"
    record(7, "a deletion that fails: two whole checkpoints kept", 1)


def test_a_save_over_an_old_checkpoint_first_takes_that_away(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 5)
    integrity.discard(checkpoint)
    assert not checkpoint.exists() and integrity.complete_steps(tmp_path) == []
    integrity.discard(checkpoint)


def test_small_files_appear_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / TRACKER
    integrity.write_atomically(path, "5")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        integrity.write_atomically(path, "10")
    assert path.read_text() == "5"


def test_files_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "checkpoints", 5)
    settings = {"load": str(tmp_path / "checkpoints"), "pretrained-checkpoint": None}
    integrity.check_owner(settings, trusted=False)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 1)
    with pytest.raises(MooError, match=f"belongs to user {mine}, not to {mine + 1}; .*--moo-trust-load"):
        integrity.check_owner(settings, trusted=False)
    integrity.check_owner(settings, trusted=True)
