"""What a rank decides about checkpoints before it loads, and says after it saved; without Megatron and other ranks."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.api import CheckpointException, _wrap_exception

from megatron_moo.errors import MooError
from megatron_moo.training.checkpoints import Checkpoints, save_error
from megatron_moo.training.integrity import TRACKER
from tests.faults.record import record
from tests.unit.training.test_integrity import save


class Alone(Checkpoints):
    """The guard of a rank that is not connected to Megatron."""

    def __init__(self, save: Path, load: Path | None = None, **settings: Any) -> None:
        defaults = {
            "save": str(save), "load": str(load or save), "pretrained_checkpoint": None, "ckpt_step": None,
            "moo_trust_load": False, "moo_keep_last": None, "curr_iteration": 0,
        }  # fmt: skip
        self.args = Namespace(**{**defaults, **settings})
        self.warnings: list[str] = []
        self._warn = lambda step, text: self.warnings.append(f"{step}: {text}")
        self._event = lambda *args, **kw: None


def test_the_tracker_is_mended_in_the_runs_own_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for step, complete in ((5, True), (10, True), (15, False)):
        save(tmp_path, step, complete)
    (tmp_path / TRACKER).write_text("")
    assert Alone(tmp_path)._choose() == tmp_path / "iter_0000010"
    assert (tmp_path / TRACKER).read_text() == "10"
    assert "going on from step 10 (iter_0000015 was not finished)" in capsys.readouterr().err
    assert Alone(tmp_path, ckpt_step=5)._choose() == tmp_path / "iter_0000005"
    with pytest.raises(MooError, match="there is no checkpoint of step 7"):
        Alone(tmp_path, ckpt_step=7)._choose()


def test_another_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other"
    save(other, 5)
    (other / TRACKER).write_text("")
    with pytest.raises(MooError, match=f"other/{TRACKER}: is damaged"):
        Alone(tmp_path / "mine", other)._choose()
    (other / TRACKER).write_text("5")
    assert Alone(tmp_path / "mine", other)._choose() == other / "iter_0000005"


def test_a_new_run_may_start_from_a_pretrained_model(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert Alone(tmp_path / "mine")._choose() is None
    save(tmp_path / "base", 5)
    (tmp_path / "base" / TRACKER).write_text("5")
    started = Alone(tmp_path / "mine", pretrained_checkpoint=str(tmp_path / "base"))
    assert started._choose() == tmp_path / "base" / "iter_0000005"


@pytest.mark.parametrize(
    ("seconds", "grace", "warned"), [(29, None, 0), (31, None, 1), (31, "540", 0), (600, "540", 1)]
)
def test_a_save_that_torchrun_would_not_wait_for_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, grace: str | None, warned: int
) -> None:
    monkeypatch.delenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", raising=False)
    if grace is not None:
        monkeypatch.setenv("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", grace)
    guard = Alone(tmp_path)
    guard._tell_save(5, seconds)
    assert guard.warnings == [], "nobody kills it without torchrun"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    guard._tell_save(5, seconds)
    assert len(guard.warnings) == warned
    for text in guard.warnings:
        assert f"saving took {seconds} s, torchrun kills ranks {grace or '30'} s after" in text
        assert f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT to {2 * seconds}" in text
    if warned:
        record(4, "a save longer than torchrun waits for warned of", 1)


def test_a_failed_save_names_place_room_and_cause(tmp_path: Path) -> None:
    save(tmp_path, 5)
    full = OSError(28, "No space left on device")
    told = str(
        save_error(tmp_path / "iter_0000010", CheckpointException("write", {1: _wrap_exception(full)}))
    )
    assert told.startswith(
        f"{tmp_path}/iter_0000010: the checkpoint could not be written (rank 1: OSError: [Errno 28]"
    )
    assert "bytes are free there; step 5 is complete: make room and start the run again" in told
    assert "(another rank failed)" in str(
        save_error(tmp_path / "iter_0000010", CheckpointException("write", {}))
    )
    worker = RuntimeError("Worker failure")
    worker.__cause__ = full
    assert "(OSError: [Errno 28] No space left on device)" in str(save_error(tmp_path / "new" / "x", worker))
