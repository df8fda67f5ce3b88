"""Cost of a training step: plain Megatron, its fp32-accumulating reduce-scatter, and Bucket-Level MOO.

    python bench/step_cost.py                              a short look: DP 2, K 2 (as `make bench` does)
    python bench/step_cost.py --dp 4 --objectives 4 --variants fp32acc mgda cagrad/model --memory
    python bench/step_cost.py --write docs/benchmarks.md   every table and the plot (half an hour)

Variants take turns step by step in the same processes, on the same model and batches, so that a slow moment
of a shared machine hits all of them. Printed are medians of the ratios with a 95 % interval (order
statistics), of wall time and of CPU time (all threads of all ranks: blind to waiting, but also to other users
of the machine). A variant of ours is METHOD[/BLOCK[/DTYPE OF KEPT ROWS]].
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _report import SETUPS, table, write  # noqa: E402
from _setup import SIZES, Setup, run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dp", type=int, default=2)
    parser.add_argument("--objectives", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--size", default="medium", choices=SIZES)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--variants", nargs="+", default=list(Setup.variants))
    parser.add_argument(
        "--memory", action="store_true", help="also run every variant alone for its peak memory"
    )
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="run every setup, write the page and its plot"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], choices=SETUPS, help="with --write: measure these alone"
    )
    parser.add_argument(
        "--keep", action="store_true", help="with --write: measure only what has no raw result"
    )
    parser.add_argument("--raw", type=Path, default=ROOT / "runs" / "step_cost", help="folder of raw results")
    parser.add_argument("--setup", help=argparse.SUPPRESS)
    args = parser.parse_args()
    script = Path(__file__).resolve()
    if args.setup:
        from _ranks import rank_main

        rank_main(Setup.loads(args.setup))
    elif args.write:
        args.raw.mkdir(parents=True, exist_ok=True)
        for name in args.only or SETUPS:
            raw = args.raw / f"{name}.json"
            if not (args.keep and raw.is_file()):
                setup, memory = SETUPS[name]
                result = run(setup, script, memory)
                raw.write_text(json.dumps(result))
                print("\n".join(table(result)), flush=True)
            write(args.write, args.raw)
    else:
        setup = Setup(
            "bench", args.dp, args.objectives, args.slots, args.size, args.pairs, tuple(args.variants)
        )
        print("\n".join(table(run(setup, script, args.memory))))


if __name__ == "__main__":
    main()
