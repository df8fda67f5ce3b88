"""A checkpoint with a list of checksums is read only when every file is what was saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_moo.cli import main
from megatron_moo.training.integrity import write_checksums


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("command", ["export", "verify"])
def test_a_flipped_weight_is_refused(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    checkpoint = next(imported.glob("release"))
    write_checksums(checkpoint)
    words = {
        "export": ["convert", "export", str(imported), str(tmp_path / "out")],
        "verify": ["convert", "verify", str(tmp_path / "hf"), str(imported)],
    }[command]
    assert main(words) == 0
    shard = max(checkpoint.glob("*.distcp"), key=lambda path: path.stat().st_size)
    flip(shard)
    capsys.readouterr()
    out = tmp_path / "again"
    assert main([*words[:3], str(out)] if command == "export" else words) == 2
    told = capsys.readouterr().err
    assert shard.name in told and "is damaged: it is not what was saved" in told
    assert not out.exists()


def test_without_a_list_nothing_can_be_checked(imported: Path, tmp_path: Path) -> None:
    """Megatron's own checkpoints, and what ``convert import`` wrote, have none."""
    assert main(["convert", "export", str(imported), str(tmp_path / "out")]) == 0
