"""``megatron-moo experiment``: what ``make experiment`` runs."""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.experiment.setting import Setting

DATA = Path("examples/libreoffice-help/data")
# Rows of a budget of a few minutes, which only shows that everything works.
QUICK_ROWS = ("mean", "fixed", "cagrad-layer", "placebo")


@dataclass(frozen=True)
class Budget:
    """Minutes, the number of reported seeds they are meant for, and what is trained in them."""

    name: str
    minutes: float
    seeds: int
    setting: Setting
    rows: tuple[str, ...] | None = None


def parse_budget(text: str) -> Budget:
    """``30m``, ``3h``, ``overnight`` (10 h) or any other number of minutes or hours.

    Up to 5 minutes: few rows, 20 steps, 2 seeds. Up to 45 minutes: 5 seeds. Up to 6 hours: 10. Beyond: 20.

    Raises:
        MooError: for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([mh])", "10h" if text == "overnight" else text)
    if not match or float(match[1]) == 0:
        raise MooError(f"{text!r} is no budget", "--budget", "give 30m, 3h or overnight")
    minutes = float(match[1]) * (60 if match[2] == "h" else 1)
    if minutes <= 5:
        quick = replace(Setting(), steps=20, valid_windows=16, measure_every=5)
        return Budget(text, minutes, 2, quick, QUICK_ROWS)
    return Budget(text, minutes, 5 if minutes <= 45 else 10 if minutes <= 360 else 20, Setting())


def add_subcommands(subparsers: Any) -> None:
    """Add ``experiment`` to the command line."""
    parser = subparsers.add_parser(
        "experiment",
        help="compare methods and baselines over paired seeds",
        description="Train many small models over paired seeds and write a page of results.",
        allow_abbrev=False,
    )
    parser.add_argument("--budget", default="30m", help="30m, 3h or overnight (default: 30m)")
    parser.add_argument(
        "--data", type=Path, default=DATA, help=f"libreoffice-help, prepared (default: {DATA})"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/experiment"), help="folder of the run")
    parser.add_argument("--page", type=Path, help="where the page goes (default: OUT/results.md)")
    parser.add_argument(
        "--study",
        default="main",
        choices=("main", "placebo", "imbalance", "larger"),
        help="what the budget is spent on: the main comparison, a later placebo, or other settings (default: main)",
    )
    parser.add_argument("--page-only", action="store_true", help="train nothing, write the page")
    parser.set_defaults(func=_experiment)


def _experiment(args: argparse.Namespace) -> int:
    from megatron_moo.experiment.page import write_page
    from megatron_moo.experiment.rows import BY_NAME, ROWS
    from megatron_moo.experiment.runner import fingerprints, run_cells
    from megatron_moo.experiment.studies import STUDIES

    budget = parse_budget(args.budget)
    seconds = 0.0 if args.page_only else budget.minutes * 60
    rows = ROWS if budget.rows is None else tuple(BY_NAME[name] for name in budget.rows)
    text = _text(args, "", budget.setting)
    mine = seconds if args.study == "main" else 0.0
    planner = run_cells(args.out, budget.setting, text, budget.seeds, mine, rows, _tell)
    studies = []
    # Cells of another setting may be there without its corpus, which is then built to know them by.
    foreign = len(fingerprints(args.out)) > 1
    for study in STUDIES.values() if budget.rows is None else ():
        its = seconds if args.study == study.name else 0.0
        same = study.setting == budget.setting
        if its or same or foreign or (args.out / f"corpus-{study.name}").is_dir():
            other = text if same else _text(args, f"-{study.name}", study.setting)
            cells = run_cells(
                args.out, study.setting, other, study.seeds, its, study.rows, _tell, study.tuning
            )
            studies.append((study, cells))
    page = args.page or args.out / "results.md"
    write_page(page, args.out, planner, budget, text.bytes_of(), studies)
    _tell(f"the page is {page}")
    return 0


def _text(args: argparse.Namespace, suffix: str, setting: Setting) -> Any:
    """The corpus of a setting, built on first use."""
    from megatron_moo.experiment.corpus import Text, prepare

    manifest = prepare(args.data, args.out / f"data{suffix}", setting)
    return Text(manifest, args.out / f"corpus{suffix}", setting)


def _tell(line: str) -> None:
    sys.stdout.write(f"megatron-moo: {line}\n")
    sys.stdout.flush()
