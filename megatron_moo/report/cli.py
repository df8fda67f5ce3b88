"""`megatron-moo report RUN`."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_moo.errors import MooError

RUNS = Path("runs")


def add_subcommands(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``report`` to the command line; each subparser sets ``func(args) -> int``."""
    parser = subparsers.add_parser(
        "report",
        help="write a run's report page and print its closing table",
        description="Write RUN/report.html, one self-contained page, and print the closing table.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, or its name under runs/")
    parser.set_defaults(func=run_report)


def find_run(name: str, runs: Path = RUNS) -> Path:
    """The folder that ``name`` means: a path, or the name of a folder in ``runs``.

    Raises:
        MooError: there is neither.
    """
    for candidate in (Path(name), runs / name):
        if candidate.is_dir():
            return candidate
    known = sorted(path.name for path in runs.iterdir() if path.is_dir()) if runs.is_dir() else []
    todo = f"one of: {', '.join(known)}" if known else "train first, or give the path of a run folder"
    raise MooError("no such run", where=name, todo=todo)


def run_report(args: argparse.Namespace) -> int:
    """Write the page, then print the table."""
    from rich.console import Console

    from megatron_moo.report.page import write_report
    from megatron_moo.report.table import print_summary

    run_dir = find_run(args.run)
    write_report(run_dir)
    print_summary(Console(), run_dir)
    return 0
