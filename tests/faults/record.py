"""What the tests of faults saw and how they ended, for ``docs/faults.md``: lines of JSON, where asked for.

``pytest -p tests.faults.record`` loads the hooks; they write a line before and after every test, whatever comes of it.
"""

from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest

# Names the file that lines are added to (tests/faults/page.py sets it).
VARIABLE = "MOO_FAULTS"
_ended: dict[str, tuple[str, str]] = {}


def record(fault: int, case: str, count: int, **measured: Any) -> None:
    """Say that ``count`` times ``case`` of a fault passed; ``measured`` holds numbers with their units in the name."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").rpartition(" (")[0]
    _write({"fault": fault, "case": case, "count": count, **measured, "test": test})


def _write(line: dict[str, Any]) -> None:
    if path := os.environ.get(VARIABLE):
        with Path(path).open("a", encoding="utf-8") as out:
            out.write(json.dumps(line, ensure_ascii=False) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    """A test begins: what an earlier run of it recorded no longer counts."""
    _ended[nodeid] = ("passed", "")
    _write({"test": nodeid, "began": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"})


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the worst of its set-up, its call and its tear-down, and why."""
    if not report.passed and _ended[report.nodeid][0] != "failed":
        _ended[report.nodeid] = (report.outcome, _why(report))


def pytest_runtest_logfinish(nodeid: str) -> None:
    """A test ended. One that was killed has no such line."""
    ended, why = _ended.pop(nodeid)
    _write({"test": nodeid, "ended": ended, **({"why": why} if why else {})})


def _why(report: pytest.TestReport) -> str:
    """The first line of an error, or the reason of a skip."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    return (crash.message if crash else str(report.longrepr)).partition("\n")[0]
