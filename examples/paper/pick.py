"""The row and learning rate with the lowest bits per byte of the seen languages, mean over the tuning seeds.

With one row: its learning rate. With several: which of them tuning puts first. Tuning runs are validated on text of
their own (`languages-8-tuning.yaml`), so what is picked here is not what the comparison reports.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from megatron_moo.errors import MooError
from megatron_moo.evaluate.compare import Run, read_run


def score(runs: list[Run]) -> float:
    """Mean bits per byte over the runs and their seen languages; infinite where a run diverged."""
    bits = [run.bits.get(tag, math.nan) for run in runs for tag in run.seen]
    value = sum(bits) / len(bits)
    return value if math.isfinite(value) else math.inf


def pick(folder: Path, rows: list[str], rates: list[str], seeds: list[str]) -> tuple[str, str]:
    """The best (row, learning rate).

    Raises:
        MooError: every run diverged.
    """
    scores = {
        (row, rate): score([read_run(folder / f"tune-{row}-{rate}-{seed}") for seed in seeds])
        for row in rows
        for rate in rates
    }
    best = min(scores, key=scores.__getitem__)
    if math.isinf(scores[best]):
        raise MooError("every tuning run diverged", ", ".join(rows), "give lower RATES")
    return best


def main() -> int:
    """Print the row and its learning rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("rows", nargs="+")
    parser.add_argument("--rates", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", required=True)
    parser.add_argument("--first", action="store_true", help="nothing was trained: print the first")
    args = parser.parse_args()
    if args.first:
        row, rate = args.rows[0], args.rates[0]
    else:
        row, rate = pick(args.runs, args.rows, args.rates, args.seeds)
    sys.stdout.write(f"{row} {rate}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
