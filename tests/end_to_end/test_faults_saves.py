"""A run is killed while it saves, the disk is full, files rot: it goes on from a whole checkpoint, or says why not."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from megatron_moo.errors import MooError
from megatron_moo.training import integrity
from megatron_moo.training.integrity import CHECKSUMS, TRACKER, step_folder
from tests.faults.record import record
from tests.faults.tiny import Tiny, events_of, losses_of, tensors_worker
from tests.pool import RankError, RankPool

FLAGS = ("--save-interval", "3", "--train-iters", "8")
POINTS = (
    "a shard written",
    "before .metadata",
    "before the checksums",
    "before the tracker",
    "tracker half written",
)
COMPLETE = POINTS[3:]  # at these the new checkpoint is whole already


@pytest.fixture(scope="module")
def tiny(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A folder in which the run ``whole`` was never interrupted."""
    tiny = Tiny(pool, tmp_path_factory.mktemp("saves"))
    tiny.run("whole", *FLAGS)
    return tiny


def resumed_steps(run: Path) -> list[int]:
    return [event["step"] for event in events_of(run, "resume")]


def same_as_whole(tiny: Tiny, run: Path) -> None:
    """Losses of every step, and every tensor of the last checkpoint, bit for bit."""
    assert losses_of(run) == losses_of(tiny.folder / "whole")
    mine, theirs = (
        tiny.pool.run(tensors_worker, 1, step_folder(folder / "checkpoints", 8))[0]
        for folder in (run, tiny.folder / "whole")
    )
    assert mine.keys() == theirs.keys() and len(mine) > 20
    assert [name for name, value in mine.items() if not torch.equal(value, theirs[name])] == []


# Fault 2 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point", [pytest.param(p, marks=pytest.mark.slow if p in POINTS[1:3] else ()) for p in POINTS]
)
def test_killed_while_it_saves(tiny: Tiny, point: str) -> None:
    name = point.replace(" ", "-")
    argv = tiny.plan(name, *FLAGS)
    with pytest.raises(RankError, match="rank 0 of 2"):
        tiny.train(argv, ("kill_in_save", point, 6))
    run = tiny.folder / name
    assert max(losses_of(run)) == 6
    assert tiny.train(argv) == [0, 0]
    assert resumed_steps(run) == [6 if point in COMPLETE else 3]
    assert (run / "checkpoints" / TRACKER).read_text() == "8"
    same_as_whole(tiny, run)
    record(2, f"kill -9 in a save: {point}", 1)


@pytest.mark.slow
def test_killed_in_its_first_save_a_run_starts_anew(tiny: Tiny) -> None:
    argv = tiny.plan("first", *FLAGS)
    with pytest.raises(RankError, match="rank 0 of 2"):
        tiny.train(argv, ("kill_in_save", "before .metadata", 3))
    assert tiny.train(argv) == [0, 0]
    assert resumed_steps(tiny.folder / "first") == []
    assert losses_of(tiny.folder / "first") == losses_of(tiny.folder / "whole")
    record(2, "kill -9 in the first save", 1)


# Fault 12 --------------------------------------------------------------------------------------------------


def flip(checkpoint: Path, rng: random.Random) -> str:
    """Flip one bit of one file, each file and each bit of it alike; its name."""
    path = rng.choice(sorted(path for path in checkpoint.iterdir() if path.stat().st_size))
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return path.name


def test_every_flipped_bit_is_refused_with_the_name_of_the_file(tiny: Tiny, tmp_path: Path) -> None:
    whole, rng, hit = step_folder(tiny.folder / "whole" / "checkpoints", 8), random.Random(12), Counter[str]()
    integrity.verify(whole)
    for number in range(100):
        checkpoint = tmp_path / f"{number}" / whole.name
        shutil.copytree(whole, checkpoint)
        name = flip(checkpoint, rng)
        with pytest.raises(
            MooError, match=rf"{re.escape(name)}: (is damaged|the list of checksums is damaged)"
        ):
            integrity.verify(checkpoint)
        hit[name] += 1
        shutil.rmtree(checkpoint)
    assert set(hit) == {path.name for path in whole.iterdir()}, "all files had their turn"
    record(12, "random bit flips over all files, refused naming the file", 100)


def test_training_refuses_a_damaged_checkpoint(tiny: Tiny) -> None:
    argv = tiny.plan("rotten", "--save-interval", "3", "--train-iters", "8", "--exit-interval", "3")
    assert tiny.train(argv) == [0, 0]
    argv = tiny.plan("rotten", *FLAGS)
    checkpoint = step_folder(tiny.folder / "rotten" / "checkpoints", 3)
    for name in (".metadata", CHECKSUMS):
        path = checkpoint / name
        before = path.read_bytes()
        path.write_bytes(before[:-40] + bytes([before[-40] ^ 4]) + before[-39:])
        with pytest.raises(RankError, match=rf"MooError: .*iter_0000003/{re.escape(name)}: .*damaged"):
            tiny.train(argv)
        path.write_bytes(before)
    (checkpoint / "__1_0.distcp").write_bytes(b"")
    assert integrity.damaged(checkpoint) == ["__1_0.distcp"]
    assert losses_of(tiny.folder / "rotten").keys() == {1, 2, 3}, "nothing was trained"
    record(12, "damaged checkpoints refused by training", 2)


# Fault 3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ranks", [pytest.param((0, 1), marks=pytest.mark.slow), (1,)], ids=["all ranks", "one rank"]
)
def test_disk_full(tiny: Tiny, ranks: tuple[int, ...]) -> None:
    """RLIMIT_FSIZE stands for the full disk: the first write beyond it fails."""
    name = f"full-{len(ranks)}"
    argv = tiny.plan(name, *FLAGS)
    with pytest.raises(RankError) as caught:
        tiny.train(argv, ("limit_file_size", 4, 100_000, ranks))
    metrics = tiny.folder / name / "metrics.jsonl"
    seconds = time.time() - metrics.stat().st_mtime  # step 6, after which it saves
    assert seconds < 30
    assert set(caught.value.errors) == {0, 1}
    for text in caught.value.errors.values():
        told = r"MooError: .*checkpoints/iter_0000006: the checkpoint could not be written \(.*\); \d+ of \d+ bytes"
        assert re.search(told, text), text
        assert "step 3 is complete" in text
    run = tiny.folder / name
    integrity.verify(step_folder(run / "checkpoints", 3))
    assert tiny.train(argv) == [0, 0]
    assert resumed_steps(run) == [3]
    same_as_whole(tiny, run)
    record(
        3,
        f"a file-size limit on {'all ranks' if len(ranks) > 1 else 'one rank'}",
        1,
        left_after_s=round(seconds, 1),
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that holds one checkpoint and a half."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1400k", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.slow
def test_disk_really_full(tiny: Tiny, small_disk: Path) -> None:
    argv = tiny.plan("tmpfs", *FLAGS)
    at = [argv.index(f"--{name}") + 1 for name in ("save", "load")]
    for place in at:
        argv[place] = str(small_disk / "checkpoints")
    with pytest.raises(RankError) as caught:
        tiny.train(argv)
    metrics = tiny.folder / "tmpfs" / "metrics.jsonl"  # on another disk
    seconds = time.time() - metrics.stat().st_mtime  # the step after which the save found no room
    assert seconds < 30
    assert set(caught.value.errors) == {0, 1}
    for text in caught.value.errors.values():
        assert re.search(
            r"iter_000000\d: the checkpoint could not be written \(.*\); \d+ of 1433600 bytes", text
        ), text
    step = integrity.complete_steps(small_disk / "checkpoints")[-1]
    integrity.verify(step_folder(small_disk / "checkpoints", step))
    record(3, "a full tmpfs", 1, left_after_s=round(seconds, 1))


# Fault 7 --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_asynchronous_save_equals_a_synchronous_one(tiny: Tiny) -> None:
    argv = tiny.plan("async", *FLAGS, "--async-save")
    assert argv[argv.index("--async-strategy") + 1] == "mcore"
    assert tiny.train(argv, ("slow_writer", 0.5), timeout=200) == [0, 0]
    run = tiny.folder / "async"
    assert integrity.complete_steps(run / "checkpoints") == [3, 6, 8]
    for step in (3, 6, 8):
        integrity.verify(step_folder(run / "checkpoints", step))
    same_as_whole(tiny, run)
    record(7, "asynchronous checkpoints equal to synchronous ones, every tensor", 3)


def test_keep_last(tiny: Tiny) -> None:
    run = tiny.run("kept", "--save-interval", "1", "--train-iters", "8", "--moo-keep-last", "2")
    assert integrity.complete_steps(run / "checkpoints") == [7, 8]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "iter_0000007",
        "iter_0000008",
        TRACKER,
    ]
    assert (run / "checkpoints" / TRACKER).read_text() == "8"
    assert [event["step"] for event in events_of(run, "save")] == list(range(1, 9))
    same_as_whole(tiny, run)
    record(7, "saves with --moo-keep-last 2, two whole checkpoints kept", 8)
