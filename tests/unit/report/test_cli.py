"""`megatron-moo report RUN`, and that reading a report needs neither torch nor Megatron."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_moo.errors import MooError
from megatron_moo.report.cli import add_subcommands, find_run
from tests.unit.report.fake_run import FakeRun


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_subcommands(parser.add_subparsers(required=True))
    return parser.parse_args(words)


def test_report_writes_the_page_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = FakeRun(steps=3).write(tmp_path / "run")
    args = parse("report", str(run_dir))
    assert args.func(args) == 0
    assert (run_dir / "report.html").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "mean of 14 seen" in out
    assert str(run_dir / "report.html") in out


def test_run_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_run("mine") == Path("runs/mine")
    with pytest.raises(MooError, match="no such run; one of: mine"):
        find_run("yours")


def test_report_imports_neither_torch_nor_megatron(tmp_path: Path) -> None:
    run_dir = FakeRun(steps=2).write(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from megatron_moo.report import page, live, cli;"
        f"page.write_report(Path({str(run_dir)!r}));"
        "print([name for name in sys.modules if name.split('.')[0] in ('torch', 'megatron')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
