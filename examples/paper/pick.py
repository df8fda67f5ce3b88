"""The learning rate with the lowest held-out bits per byte of the seen languages, mean over the tuning seeds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_moo.evaluate.compare import read_run


def main() -> int:
    """Print the pick for one row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("row")
    parser.add_argument("--rates", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--first", action="store_true", help="nothing was trained: print the first")
    args = parser.parse_args()
    scores = {}
    for rate in [] if args.first else args.rates:
        runs = [read_run(args.runs / f"tune-{args.row}-{rate}-{seed}") for seed in args.seeds]
        scores[rate] = sum(run.bits[tag] for run in runs for tag in run.seen) / sum(
            len(run.seen) for run in runs
        )
    sys.stdout.write(f"{min(scores, key=scores.__getitem__) if scores else args.rates[0]}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
