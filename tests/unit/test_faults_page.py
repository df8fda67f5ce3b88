"""docs/faults.md is what the recorded tests of faults give, no fault is missing in it, and failures are told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import page
from tests.faults.demanded import DEMANDED
from tests.faults.record import VARIABLE


def test_the_page_is_up_to_date() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.markdown(page.read(page.RESULTS))


def test_every_fault_is_demanded() -> None:
    assert {fault for fault, _, _ in DEMANDED} == set(page.TITLES)
    assert len({(fault, case) for fault, case, _ in DEMANDED}) == len(DEMANDED), "each once"


def test_every_demanded_case_passed() -> None:
    """Kill -9 twenty times, all points of a save, every method with every bad value: all of them."""
    lines = page.read(page.RESULTS)
    assert page.lacking(page.rows_of(page.tests_of(lines))) == []


def passing() -> list[dict[str, Any]]:
    """What a campaign records where everything passes."""
    lines: list[dict[str, Any]] = [page.WHOLE]
    for number, (fault, case, least) in enumerate(DEMANDED):
        lines += [{"test": f"t{number}", "began": "2026-01-02"}]
        lines += [{"fault": fault, "case": case, "count": least, "test": f"t{number}"}]
        lines += [{"test": f"t{number}", "ended": "passed"}]
    return lines


def lacking(lines: list[dict[str, Any]]) -> list[str]:
    return page.lacking(page.rows_of(page.tests_of(lines)))


def test_a_whole_campaign_is_enough_and_nothing_less_is() -> None:
    whole = passing()
    assert lacking(whole) == []
    for number, (fault, case, least) in enumerate(DEMANDED):
        at = 3 * number + 1
        told = f"{fault}: {case}: "
        assert lacking(whole[:at] + whole[at + 3 :]) == [f"{told}0 of {least} times, not recorded"]
        fewer = {**whole[at + 1], "count": least - 1}
        assert lacking([*whole[: at + 1], fewer, *whole[at + 2 :]]) == [
            f"{told}{least - 1} of {least} times, passed"
        ]
        assert lacking(whole[: at + 2] + whole[at + 3 :]) == [
            f"{told}{least} of {least} times, {page.NOT_FINISHED}"
        ]
    again = [*whole, {"test": "t0", "began": "2026-01-03"}, {"test": "t0", "ended": "failed", "why": "no"}]
    assert len(lacking(again)) == 1, "what passed before does not count any more"
    text = page.markdown(again)
    assert f"{len(DEMANDED) - 1} of {len(DEMANDED)} cases passed" in text
    assert "- `t0`: failed (no)" in text and "Run on 2026-01-02 to 2026-01-03." in text


def test_what_was_recorded_before_tests_were_named_counts_once_and_is_not_called_passed() -> None:
    old = {"fault": 1, "case": "old", "count": 4}
    row = page.rows_of(page.tests_of([old, old]))[1, "old"]
    assert row.count == 4 and not row.passed


TESTS = """\
import os
import pytest
from tests.faults.record import record

def test_good():
    record(1, "good", 2, took_s=3)

def test_recorded_then_failed():
    record(1, "bad", 1)
    assert 1 == 2

@pytest.fixture
def broken():
    yield
    raise RuntimeError("at its end")

def test_torn_down(broken):
    record(2, "torn", 1)

def test_skipped():
    pytest.skip("needs root")

def test_killed():
    record(3, "killed", 1)
    os._exit(9)
"""


def test_how_a_test_ended_is_recorded(tmp_path: Path) -> None:
    """By pytest itself, in a process of its own that does not end well either."""
    (tmp_path / "test_it.py").write_text(TESTS)
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.faults.record", "-p", "no:cacheprovider",
               "-c", "/dev/null", str(tmp_path)]  # fmt: skip
    env = {VARIABLE: str(results), "PYTHONPATH": str(page.ROOT), "PATH": "/bin:/usr/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 9, done.stdout + done.stderr
    page.keep_the_last(results)
    tests = {name.rpartition("::")[2]: ran for name, ran in page.tests_of(page.read(results)).items()}
    assert {name: (ran.ended, ran.why) for name, ran in tests.items()} == {
        "test_good": ("passed", ""),
        "test_recorded_then_failed": ("failed", "assert 1 == 2"),
        "test_torn_down": ("failed", "RuntimeError: at its end"),
        "test_skipped": ("skipped", "needs root"),
        "test_killed": (page.NOT_FINISHED, ""),
    }
    rows = page.rows_of(page.tests_of(page.read(results)))
    assert {case: row.passed for (_, case), row in rows.items() if row.count} == {
        "good": True, "bad": False, "torn": False, "killed": False,
    }  # fmt: skip
    assert rows[1, "good"].measured == {"took_s": 3}


def test_the_page_is_written_when_tests_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RESULTS", "PAGE"):
        monkeypatch.setattr(page, name, tmp_path / name)

    def fail(slow: bool, tests: tuple[str, ...]) -> int:
        assert slow and tests == page.TESTS and page.read(page.RESULTS) == [page.WHOLE], "begun anew"
        with page.RESULTS.open("a") as out:
            out.writelines(json.dumps(line) + "\n" for line in passing()[4:])
        return 1

    monkeypatch.setattr(page, "run", fail)
    monkeypatch.setattr(sys, "argv", ["page", "--run", "--slow"])
    assert page.main() == 1
    assert f"| {DEMANDED[0][1]} | 0 | not recorded |" in page.PAGE.read_text()


def test_every_test_of_faults_is_run_for_the_page() -> None:
    named = {page.ROOT / path for path in page.TESTS}
    recording = {
        path
        for path in (page.ROOT / "tests").rglob("test_*.py")
        if "import record\n" in path.read_text(encoding="utf-8")
    }
    assert recording - {Path(__file__)} == named
