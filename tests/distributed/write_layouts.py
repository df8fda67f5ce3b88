"""Write docs/layouts.md: the measured error of every row of the matrix, and the traps with their tests.

python -m tests.distributed.write_layouts docs/layouts.md
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.distributed import traps
from tests.distributed.assemble import errors, gramian_error
from tests.distributed.case import Case
from tests.distributed.matrix import CASES
from tests.distributed.ranks import layout_worker, reference_worker
from tests.distributed.test_traps import ELSEWHERE, OTHERS, REFUSED, TRAPS
from tests.pool import RankPool

HEAD = """\
# Exactness at every layout

Each row trains one step under `megatron.training` on gloo ranks and compares its update d with that of a single process
that makes K backward passes on the whole model, from the same weights and batches. *update* is the largest
||d - d_ref|| / ||J||_F over the blocks (the bound is 1e-5 in fp32, 5e-3 with bf16 rows), *Gramian* the largest error of
a block's Gramian relative to its trace. `tests/distributed/test_layouts.py` holds every row to the bounds;
`python -m tests.distributed.write_layouts docs/layouts.md` wrote this page. CPU only: nothing here was run with NCCL.

| layout | ranks | TP | PP | CP | EP | DP | lanes | K | slots | method | block | update | Gramian |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

TRAP_HEAD = """
## The traps

Each has its handling taken out in a test, which must then see the update go wrong
(`tests/distributed/test_traps.py`; a name alone is that of the function in `tests/distributed/traps.py`). What is
refused by name at the first step stands with *refused*: the tests see the refusal, and the wrong update without it.
Traps that show in a smaller test than a run stand at the end, with that test.

| what goes wrong without its handling | seen in | test |
| --- | --- | --- |
"""


def row(pool: RankPool, case: Case) -> str:
    """One line of the table."""
    ranks = pool.run(layout_worker, case.world, case, timeout=200)
    reference = pool.run(reference_worker, 1, case, timeout=200)[0]
    worst, gramian = max(errors(ranks, reference).values()), gramian_error(ranks, reference)
    cells = [
        case.name, case.world, case.tp, case.pp, case.cp, case.ep, case.dp, case.lanes, case.objectives, case.slots,
        case.method, case.block, f"{worst:.0e}", f"{gramian:.0e}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |\n"


def main() -> None:
    pool = RankPool()
    started = time.time()
    text = HEAD + "".join(row(pool, case) for case in CASES)
    pool.close()
    text += TRAP_HEAD
    seen = [(name, case.name) for name, case in (*TRAPS, *OTHERS)]
    for name, where in (*seen, *((name, f"{case.name}: refused") for name, case, *_ in REFUSED)):
        what = (getattr(traps, name).__doc__ or "").strip().rstrip(".")
        text += f"| {what} | {where} | `{name}` |\n"
    text += "".join(f"| {what} | {where} | `{test}` |\n" for what, where, test in ELSEWHERE)
    Path(sys.argv[1]).write_text(text, encoding="utf-8")
    sys.stderr.write(f"{len(CASES)} rows in {time.time() - started:.0f} s\n")


if __name__ == "__main__":
    main()
