"""docs/faults.md from what the tests of faults recorded.

python -m tests.faults.page --run              run the short tests, record, write the page
python -m tests.faults.page --run --slow       the whole campaign, recorded anew (about half an hour on two cores)
python -m tests.faults.page --run --slow FILE  the tests of a file again; the others keep what they recorded
python -m tests.faults.page                    write the page from the last records

The page is written whatever the tests did, and says what failed; the status is then pytest's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.demanded import DEMANDED
from tests.faults.record import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
TEXT = Path(__file__).with_name("page.md")
PAGE = ROOT / "docs" / "faults.md"
TESTS = (
    "tests/end_to_end/test_faults_saves.py", "tests/end_to_end/test_faults_runs.py",
    "tests/end_to_end/test_faults_processes.py", "tests/end_to_end/test_faults_pickles.py",
    "tests/distributed/test_bad_gradients.py", "tests/distributed/test_state.py", "tests/unit/training/test_spikes.py",
    "tests/unit/training/test_checkpoints.py", "tests/unit/training/test_integrity.py",
)  # fmt: skip
TITLES = {
    1: "a rank is killed", 2: "killed inside a save", 3: "the disk is full", 4: "asked to end",
    5: "resumed at another layout", 6: "what a method remembers", 7: "asynchronous saves, keep last",
    8: "a rank is stopped or lost", 9: "ranks disagree", 10: "NaN or Inf", 11: "a loss spike",
    12: "a damaged checkpoint", 13: "pickles, and other users' files",
}  # fmt: skip
_NO_NUMBERS = ("fault", "case", "count", "test")
# Stands in the records once a whole campaign was begun: from then on every demanded case has to be there.
WHOLE = {"campaign": "whole"}
NOT_FINISHED = "not known to have ended"


@dataclass
class Ran:
    """The last time that a test ran."""

    began: str = ""
    ended: str = NOT_FINISHED
    why: str = ""
    records: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Row:
    """A case: how often it passed, how the tests that recorded it ended, and what they measured."""

    count: int = 0
    ended: set[str] = field(default_factory=set)
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether every test that recorded it passed."""
        return self.ended == {"passed"}


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of records."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tests_of(lines: list[dict[str, Any]]) -> dict[str, Ran]:
    """The last run of every test; records of before tests were named stand for themselves."""
    tests: dict[str, Ran] = {}
    for line in lines:
        if line == WHOLE:
            continue
        name = line.get("test") or f"{line['fault']}: {line['case']}"
        ran = tests.setdefault(name, Ran())
        if "began" in line:
            tests[name] = Ran(line["began"])
        elif "test" not in line:
            tests[name] = Ran(records=[line])
        elif "ended" in line:
            ran.ended, ran.why = line["ended"], line.get("why", "")
        else:
            ran.records.append(line)
    return tests


def rows_of(tests: dict[str, Ran]) -> dict[tuple[int, str], Row]:
    """Every case that was recorded or is demanded, by fault."""
    rows: dict[tuple[int, str], Row] = {}
    for ran in tests.values():
        for line in ran.records:
            row = rows.setdefault((line["fault"], line["case"]), Row())
            row.count += line["count"]
            row.ended.add(ran.ended)
            row.measured |= {name: value for name, value in line.items() if name not in _NO_NUMBERS}
    for fault, case, _ in DEMANDED:
        rows.setdefault((fault, case), Row(ended={"not recorded"}))
    return dict(sorted(rows.items(), key=lambda item: item[0][0]))


def lacking(rows: dict[tuple[int, str], Row]) -> list[str]:
    """Demanded cases that did not pass as often as is demanded."""
    return [
        f"{fault}: {case}: {row.count} of {least} times, {', '.join(sorted(row.ended))}"
        for fault, case, least in DEMANDED
        if not (row := rows[fault, case]).passed or row.count < least
    ]


def markdown(lines: list[dict[str, Any]]) -> str:
    """The page."""
    tests = tests_of(lines)
    rows = rows_of(tests)
    table = []
    for (fault, case), row in rows.items():
        measured = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row.measured.items())
        ended = ", ".join(sorted(row.ended))
        table.append(f"| {fault}. {TITLES[fault]} | {case} | {row.count} | {ended} | {measured} |")
    return TEXT.read_text(encoding="utf-8").format(rows="\n".join(table), total=total(tests, rows))


def total(tests: dict[str, Ran], rows: dict[tuple[int, str], Row]) -> str:
    """What passed and what did not, in numbers; then every test that did not pass."""
    passed = [row for row in rows.values() if row.passed]
    days = sorted({ran.began for ran in tests.values()} - {""})
    ended = Counter(ran.ended for ran in tests.values() if ran.began)
    said = [
        f"{len(passed)} of {len(rows)} cases passed, {sum(row.count for row in passed)} times.",
        f"Tests: {', '.join(f'{number} {how}' for how, number in sorted(ended.items()))}." if ended else "",
        f"Run on {' to '.join(dict.fromkeys((days[0], days[-1])))}." if days else "",
    ]
    bad = [
        f"- `{name}`: {ran.ended}{f' ({ran.why})' if ran.why else ''}"
        for name, ran in tests.items()
        if ran.began and ran.ended != "passed"
    ]
    return "\n".join([" ".join(filter(None, said)), *(["", *bad] if bad else [])])


def run(slow: bool, tests: tuple[str, ...]) -> int:
    """Run the tests with recording; the status of pytest."""
    hooks = ("-p", "tests.faults.record")
    command = [sys.executable, "-m", "pytest", "-q", *hooks, *([] if slow else ["-m", "not slow"]), *tests]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, VARIABLE: str(RESULTS)}, check=False
    ).returncode


def keep_the_last(path: Path) -> None:
    """Drop from a file of records what later runs of the same tests have replaced."""
    lines = read(path)
    kept = [WHOLE] if WHOLE in lines else []
    for name, ran in tests_of(lines).items():
        kept += [{"test": name, "began": ran.began}] if ran.began else []
        kept += ran.records
        if ran.ended != NOT_FINISHED:
            kept.append({"test": name, "ended": ran.ended} | ({"why": ran.why} if ran.why else {}))
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
    path.write_text(text, encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", action="store_true", help="run the tests first")
    parser.add_argument("--slow", action="store_true", help="the slow ones too")
    parser.add_argument("tests", nargs="*", metavar="FILE", help="only these")
    args = parser.parse_args()
    status = 0
    if args.run:
        if args.slow and not args.tests:
            RESULTS.write_text(json.dumps(WHOLE) + "\n", encoding="utf-8")
        status = run(args.slow, tuple(args.tests) or TESTS)
        keep_the_last(RESULTS)
    lines = read(RESULTS)
    PAGE.write_text(markdown(lines), encoding="utf-8")
    if WHOLE in lines and (bad := lacking(rows_of(tests_of(lines)))):
        sys.stderr.write("\n  ".join(["demanded and lacking:", *bad]) + "\n")
        status = status or 1
    return status


if __name__ == "__main__":
    sys.exit(main())
