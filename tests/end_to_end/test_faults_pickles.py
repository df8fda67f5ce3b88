"""A pickle in a checkpoint runs in no command but ``train``, which loads only what is the user's own."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from megatron_moo.cli import main
from megatron_moo.training.integrity import step_folder
from tests.faults.record import record
from tests.faults.tiny import Tiny, losses_of
from tests.pool import RankError, RankPool


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.fixture(scope="module")
def tiny(pool: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    tiny = Tiny(pool, tmp_path_factory.mktemp("pickles"))
    run = tiny.run("whole", "--train-iters", "4")
    assert main(["convert", "export", str(run / "checkpoints"), str(tiny.folder / "hf")]) == 0, (
        "without bait it works"
    )
    return tiny


def plant(kind: str, checkpoint: Path, canary: Path) -> None:
    """Put a canary where a reader might unpickle it; the checksums are made to agree, as an attacker would."""
    bait = Canary(canary)
    if kind == ".metadata":
        (checkpoint / ".metadata").write_bytes(pickle.dumps(bait))
    elif kind == "common.pt":
        torch.save({"args": bait}, checkpoint / "common.pt")
    elif kind == "shard":
        (checkpoint / "__0_0.distcp").write_bytes(pickle.dumps(bait))
    elif kind == ".pt":
        torch.save({"model": bait}, checkpoint / "model_optim_rng.pt")
    else:
        np.save(checkpoint / "cache.npy", np.array([bait], dtype=object), allow_pickle=True)
    from megatron_moo.training import integrity

    integrity.write_checksums(checkpoint)


def commands(run: Path, out: Path, hf: Path) -> list[list[str]]:
    return [
        ["convert", "export", str(run / "checkpoints"), str(out)],
        ["convert", "verify", str(hf), str(run / "checkpoints")],
        ["eval", str(run), "--items", "0"],
        ["report", str(run)],
    ]


# What the first of them says to each bait: a file that it has to read is refused, one that it need not is left alone.
EXPORT = {".metadata": 2, "common.pt": 2, "shard": 2, ".pt": 0, ".npy": 0}


@pytest.mark.parametrize("kind", EXPORT)
def test_no_pickle_runs(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    run, canary = tmp_path / "run", tmp_path / "canary"
    shutil.copytree(tiny.folder / "whole", run)
    plant(kind, step_folder(run / "checkpoints", 4), canary)
    told = commands(run, tmp_path / "out", tiny.folder / "hf")
    for number, command in enumerate(told):
        status = main(command)
        assert status in (0, 2) if number else status == EXPORT[kind], command
        assert not canary.exists(), f"{command} ran it"
    if kind != ".npy":
        pickle.loads(pickle.dumps(Canary(canary)))
        assert canary.exists(), "the canary works"
    record(13, f"a pickle in {kind} run by no command", len(told))


@pytest.mark.slow
def test_train_refuses_the_files_of_another_user(tiny: Tiny) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving files away needs root")
    argv = tiny.plan("theirs", "--train-iters", "4", "--exit-interval", "2")
    assert tiny.train(argv) == [0, 0]
    run = tiny.folder / "theirs"
    for path in (run / "checkpoints").rglob("*"):
        os.chown(path, 12345, -1)
    with pytest.raises(
        RankError, match=r"checkpoints/\S+: belongs to user 12345, not to 0; .*moo-trust-load"
    ):
        tiny.plan("theirs", "--train-iters", "4")
    argv = tiny.plan("theirs", "--train-iters", "4", "--moo-trust-load")
    with pytest.raises(RankError, match=r"belongs to user 12345"):
        tiny.train([word for word in argv if word != "--moo-trust-load"])
    assert tiny.train(argv) == [0, 0]
    assert losses_of(run) == losses_of(tiny.folder / "whole")
    record(13, "train refuses a checkpoint of another user without --moo-trust-load", 2)
