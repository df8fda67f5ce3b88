"""docs/faults.md from what the tests of faults recorded.

python -m tests.faults.page --run          run the short tests, record, write the page
python -m tests.faults.page --run --slow   the slow ones too (about half an hour on two cores)
python -m tests.faults.page                write the page from the last records
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.record import VARIABLE

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.jsonl")
TEXT = Path(__file__).with_name("page.md")
PAGE = ROOT / "docs" / "faults.md"
TESTS = (
    "tests/end_to_end/test_faults_saves.py", "tests/end_to_end/test_faults_runs.py",
    "tests/end_to_end/test_faults_processes.py", "tests/end_to_end/test_faults_pickles.py",
    "tests/distributed/test_bad_gradients.py", "tests/distributed/test_state.py", "tests/unit/training/test_spikes.py",
)  # fmt: skip
TITLES = {
    1: "a rank is killed", 2: "killed inside a save", 3: "the disk is full", 4: "asked to end",
    5: "resumed at another layout", 6: "what a method remembers", 7: "asynchronous saves, keep last",
    8: "a rank is stopped or lost", 9: "ranks disagree", 10: "NaN or Inf", 11: "a loss spike",
    12: "a damaged checkpoint", 13: "pickles, and other users' files",
}  # fmt: skip
_KEYS = ("fault", "case", "count")


def read(path: Path) -> list[dict[str, Any]]:
    """The last record of every case, by fault."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    last = {(line["fault"], line["case"]): line for line in lines}
    return sorted(last.values(), key=lambda line: line["fault"])


def markdown(records: list[dict[str, Any]]) -> str:
    """The page."""
    rows = []
    for line in records:
        measured = [f"{name.replace('_', ' ')} {value}" for name, value in line.items() if name not in _KEYS]
        what = f"{line['fault']}. {TITLES[line['fault']]}"
        rows.append(f"| {what} | {line['case']} | {line['count']} | {', '.join(measured)} |")
    total = f"{len(records)} cases, {sum(line['count'] for line in records)} times, none failed."
    return TEXT.read_text(encoding="utf-8").format(rows="\n".join(rows), total=total)


def run(slow: bool) -> int:
    """Run the tests with recording; the status of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", *([] if slow else ["-m", "not slow"]), *TESTS]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, VARIABLE: str(RESULTS)}, check=False
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the tests first")
    parser.add_argument("--slow", action="store_true", help="the slow ones too")
    args = parser.parse_args()
    if args.run and (status := run(args.slow)):
        return status
    PAGE.write_text(markdown(read(RESULTS)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
