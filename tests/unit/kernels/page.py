"""Write docs/kernels.md: which kernel is where, and the log of its tests under Triton's interpreter.

python -m tests.unit.kernels.page docs/kernels.md      (about 2 minutes; runs tests/unit/kernels)
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree  # the file is our own pytest's

import torch
import triton

ROOT = Path(__file__).resolve().parents[3]
TESTS = Path(__file__).parent
TEXT = Path(__file__).with_name("page.md")


def cases(report: Path) -> list[tuple[str, str, bool, float, float | None]]:
    """File, test, whether it passed, seconds and error of every case in a JUnit report."""
    found = []
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 (written by the run above)
        file = case.attrib["classname"].rsplit(".", 1)[-1]
        errors = [float(entry.attrib["value"]) for entry in case.iter("property")]
        passed = not any(case.findall(state) for state in ("failure", "error", "skipped"))
        seconds = float(case.attrib["time"])
        found.append((file, case.attrib["name"].split("[")[0], passed, seconds, max(errors, default=None)))
    return found


def table(report: Path) -> str:
    """One row per test, and a last line with the totals."""
    groups = defaultdict(list)
    for file, test, *rest in cases(report):
        groups[file, test].append(rest)
    lines = []
    for (file, test), group in groups.items():
        errors = [error for _, _, error in group if error is not None]
        error = f"{max(errors):.0e}" if errors else ""
        passed, seconds = sum(ok for ok, _, _ in group), sum(second for _, second, _ in group)
        lines.append(f"| `{file}.py` | `{test}` | {len(group)} | {passed} | {error} | {seconds:.1f} |\n")
    every = [entry for group in groups.values() for entry in group]
    return "".join(lines) + f"\n{len(every)} cases, {sum(ok for ok, _, _ in every)} passed.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        # Tests of the benchmark say nothing of the kernels that the others do not.
        options = [
            "-q",
            "-o",
            "junit_family=legacy",
            f"--junitxml={report}",
            f"--ignore={TESTS / 'test_bench.py'}",
        ]
        command = [sys.executable, "-m", "pytest", *options, str(TESTS)]
        status = subprocess.run(command, cwd=ROOT, check=False).returncode
        if status:
            return status
        versions = {"torch": torch.__version__.split("+")[0], "triton": triton.__version__}
        text = TEXT.read_text(encoding="utf-8").format(rows=table(report), **versions)
    page.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
