"""A conversion that is killed leaves nothing that looks finished, and the next one is not disturbed by it."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_moo.convert import dist_write
from megatron_moo.convert.dist_write import new_folder
from megatron_moo.convert.exporter import export_checkpoint
from megatron_moo.convert.importer import import_checkpoint
from megatron_moo.errors import MooError
from tests.unit.convert import tiny
from tests.unit.convert.test_convert import loaded

ROOT = Path(__file__).resolve().parents[3]
# A process that dies, as by SIGKILL or a lost machine, in the middle of the weights.
DIES = """
import os, signal, sys
from pathlib import Path
from megatron_moo.convert import exporter, importer
module, name = (importer, "make_part") if sys.argv[1] == "import" else (exporter, "read_parts")
real, calls = getattr(module, name), []
def dying(*args):
    calls.append(1)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args)
setattr(module, name, dying)
convert = importer.import_checkpoint if sys.argv[1] == "import" else exporter.export_checkpoint
convert(Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("what", ["import", "export"])
def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path, what: str) -> None:
    source = tiny.write(tmp_path / "hf")
    convert = import_checkpoint
    if what == "export":
        import_checkpoint(source, tmp_path / "megatron")
        source, convert = tmp_path / "megatron", export_checkpoint
    target = tmp_path / "out"

    died = subprocess.run(
        [sys.executable, "-c", DIES, what, source, target], cwd=ROOT, timeout=120, check=False
    )

    assert died.returncode == -signal.SIGKILL
    assert not target.exists()
    left = tmp_path / ".out.unfinished"
    assert left.is_dir()
    (left / "old").mkdir()
    # Even who looks into the hidden folder finds no checkpoint.
    assert not (left / "latest_checkpointed_iteration.txt").exists() and not (left / "config.json").exists()
    assert not (left / "release" / ".metadata").exists()

    convert(source, target)
    assert not left.exists()
    assert not (target / "old").exists()
    back = target
    if what == "import":
        export_checkpoint(target, back := tmp_path / "back")
    assert all(tensor.equal(tiny.tensors()[name]) for name, tensor in loaded(back).items())


def test_two_conversions_do_not_write_one_folder(tmp_path: Path) -> None:
    (tmp_path / ".out.unfinished").mkdir()
    holder = os.open(tmp_path / ".out.unfinished", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(MooError, match="another conversion"), new_folder(tmp_path / "out"):
        pass
    os.close(holder)
    with new_folder(tmp_path / "out") as hidden:
        (hidden / "x").write_text("x")
    assert (tmp_path / "out/x").exists()


def test_overwrite_keeps_the_former_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, target = tiny.write(tmp_path / "hf"), tmp_path / "out"
    import_checkpoint(folder, target)
    (target / "mark").write_text("former")

    def fail(_path: Path) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(dist_write, "_put_in_place", lambda *_: fail(target))
        with pytest.raises(OSError, match="gone"):
            import_checkpoint(folder, target, overwrite=True)
    assert (target / "mark").exists()
    import_checkpoint(folder, target, overwrite=True)
    assert not (target / "mark").exists()
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_overwrite_replaces_only_conversions(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf")
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious").write_text("x")
    with pytest.raises(MooError, match="no conversion"):
        import_checkpoint(folder, tmp_path / "home", overwrite=True)
    with pytest.raises(MooError, match="holds what would be read"):
        import_checkpoint(folder, folder, overwrite=True)
    assert (tmp_path / "home/precious").exists() and (folder / "config.json").exists()
