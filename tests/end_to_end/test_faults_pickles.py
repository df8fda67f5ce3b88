"""A pickle in a checkpoint runs in no command but ``train``, which loads only what is the user's own."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from megatron_moo.cli import main
from megatron_moo.data.corpus import canonical, read_record
from megatron_moo.data.indexed import CHUNK
from megatron_moo.training import integrity
from megatron_moo.training.integrity import step_folder
from tests.faults.record import record
from tests.faults.tiny import UDHR, Tiny, losses_of
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


@dataclass
class Baited:
    """A run with its corpus, and a model of Hugging Face, each of its own, in one of whose files a canary sits.

    Attributes:
        file: that file.
        fire: what unpickles it without care.
    """

    folder: Path
    run: Path
    hf: Path
    file: Path
    fire: Callable[[Path], Any]


def planted(tiny: Tiny, folder: Path, kind: str) -> Baited:
    """Put a canary where a command reads; the checksums are made to agree, as an attacker would."""
    run, hf, corpus = folder / "run", folder / "hf", folder / "corpus"
    flags = yaml.safe_load((tiny.folder / "whole" / "recipe.yaml").read_text())
    shutil.copytree(tiny.folder / "whole", run)
    shutil.copytree(tiny.folder / "hf", hf)
    shutil.copytree(flags["flags"]["corpus"], corpus)
    flags["flags"]["corpus"] = str(corpus)
    (run / "recipe.yaml").write_text(yaml.safe_dump(flags))
    checkpoint, bait = step_folder(run / "checkpoints", 4), Canary(folder / "canary")
    file, fire = checkpoint / kind, unpickle
    if kind == "common.pt":
        torch.save({"args": bait}, file)
        fire = unpickle_torch
    elif kind == ".pt":  # weights as torch saves them: read by `convert import --allow-pickle`
        (hf / "model.safetensors").unlink()
        file, fire = hf / "pytorch_model.bin", unpickle_torch
        torch.save({"model.norm.weight": bait}, file)
        torch.save({"model": bait}, checkpoint / "model_optim_rng.pt")
    elif kind == ".npy":  # no command takes one; arrays are read from the corpus
        file, fire = corpus / "el" / "valid.idx", unpickle_numpy
        with file.open("wb") as out:
            np.save(out, np.array([bait], dtype=object), allow_pickle=True)
        sign(corpus, "el/valid")
        shutil.copy(file, checkpoint / "cache.npy")
    else:
        file = checkpoint / {"shard": "__0_0.distcp"}.get(kind, kind)
        file.write_bytes(pickle.dumps(bait))
    integrity.write_checksums(checkpoint)
    return Baited(folder, run, hf, file, fire)


def sign(corpus: Path, prefix: str) -> None:
    """Make every size and checksum of a corpus agree with a changed index."""
    record = read_record(corpus)
    (part,) = [part for entry in record["entries"] for part in entry["parts"] if part["prefix"] == prefix]
    index, sums = corpus / f"{prefix}.idx", corpus / part["crc"]
    of_tokens = sums.read_bytes()[: 4 * -(-part["bin"]["size"] // CHUNK)]
    data = index.read_bytes()
    assert len(data) <= CHUNK
    sums.write_bytes(of_tokens + zlib.crc32(data).to_bytes(4, "little"))
    part["idx"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    part["crc_sha256"] = hashlib.sha256(sums.read_bytes()).hexdigest()
    (corpus / "build.json").write_bytes(canonical(record))


def unpickle(path: Path) -> Any:
    return pickle.loads(path.read_bytes())


def unpickle_torch(path: Path) -> Any:
    return torch.load(path, weights_only=False)


def unpickle_numpy(path: Path) -> Any:
    with path.open("rb") as file:
        return np.load(file, allow_pickle=True)


def commands(at: Baited) -> dict[str, list[str]]:
    run, hf, checkpoints = str(at.run), str(at.hf), str(at.run / "checkpoints")
    out = {name: str(at.folder / f"{name}-out") for name in ("export", "import", "eval", "analyze")}
    text = ["--text", str(UDHR / "train"), "--languages", "el,ko", "--sentences", "8", "--tokens", "8"]
    few = ["--items", "0", "--windows", "1", "--new-tokens", "0"]
    return {
        "export": ["convert", "export", checkpoints, out["export"]],
        "import": ["convert", "import", hf, out["import"], "--allow-pickle"],
        "verify": ["convert", "verify", hf, checkpoints, "--allow-pickle"],
        "eval": ["eval", run, *few],
        "eval of a model": ["eval", hf, *text[:4], *few, "--tokenizer", "byte", "--out", out["eval"]],
        "analyze": ["analyze", run, *text, "--out", out["analyze"]],
        "report": ["report", run],
    }


# Which of them have to read the bait, and refuse it.
REFUSED = {
    ".metadata": {"export", "verify", "eval", "analyze"},
    "common.pt": {"export", "verify", "eval", "analyze"},
    "shard": {"export", "verify", "eval", "analyze"},
    ".pt": {"import", "verify", "eval of a model"},
    ".npy": {"eval"},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_no_pickle_runs(tiny: Tiny, tmp_path: Path, kind: str) -> None:
    at = planted(tiny, tmp_path, kind)
    told: dict[str, int] = {}
    for name, command in commands(at).items():
        told[name] = main(command)
        assert not (tmp_path / "canary").exists(), f"{command} ran it"
    assert told == {name: 2 if name in REFUSED[kind] else 0 for name in told}
    at.fire(at.file)
    assert (tmp_path / "canary").exists(), "the canary works"
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
