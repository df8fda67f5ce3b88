"""What the CPU twins cost in a run: medians of each phase's share of the step, from its metrics.jsonl.

make train && python bench/twins.py             the quickstart
python bench/twins.py runs/NAME                  another run
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from megatron_moo.report.metrics import read_metrics

TARGET = 0.03
WARM_UP = 20


def main() -> int:
    run = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart")
    steps = read_metrics(run).steps[WARM_UP:]
    if not steps:
        sys.stderr.write(f"{run} has no more than {WARM_UP} steps: train first (make train)\n")
        return 1
    for name in steps[0].phase_s:
        share = statistics.median(step.phase_s[name] / step.step_time_s for step in steps)
        sys.stdout.write(f"{name:10} {100 * share:5.1f} %\n")
    twins = statistics.median(
        (step.phase_s["gramian"] + step.phase_s["combine"]) / step.step_time_s for step in steps
    )
    met = "met" if twins <= TARGET else "missed"
    sys.stdout.write(
        f"Gramian and combination together {100 * twins:.1f} % (target {100 * TARGET:.0f} %: {met})\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
