"""Write docs/layouts.md: the measured error of every row of the matrix, and the traps with their tests.

python -m tests.distributed.write_layouts docs/layouts.md [WORD ...]

With words, only the rows whose name has one of them are measured again, and those that the page lacks. The page is
written after every row, so that a run that is cut off leaves what it measured.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tests.distributed import traps
from tests.distributed.assemble import errors, gramian_error
from tests.distributed.case import Case
from tests.distributed.matrix import BUCKETS, CASES, HELD
from tests.distributed.ranks import layout_worker, reference_worker
from tests.distributed.test_traps import ELSEWHERE, OTHERS, REFUSED, TRAPS
from tests.pool import RankPool

HEAD = """\
# Exactness at every layout

Each row trains one step under `megatron.training` on gloo ranks (*step 2*: two steps, with parameters that stand still)
and compares its update d with that of a single process that makes K backward passes on the whole model, from the same
weights and batches. *update* is the largest
||d - d_ref|| / ||J||_F over the blocks (the bound is 1e-5 in fp32, 5e-3 with bf16 rows), *Gramian* the largest error of
a block's Gramian relative to its trace. `tests/distributed/test_layouts.py` holds every row to the bounds;
`python -m tests.distributed.write_layouts docs/layouts.md` wrote this page; its last run measured {done} of the
{rows} rows in {seconds:.0f} s on {cores} cores, where the load average was {load:.0f} before it began.
CPU only: nothing here was run with NCCL.

| layout | ranks | TP | PP | CP | EP | DP | lanes | K | slots | method | block | update | Gramian |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""

HELD_HEAD = """
## Held elsewhere

Promises that a single update cannot show, each with what it is held against and the test. Twenty steps of `token` leave
out the layouts with rows in bf16 (rounded), with exclusions (plain Megatron excludes nothing), and those of step 2
(whose parameters stand still, so that one reference serves both steps); with bf16 parameters losses are held to 1e-3.

| what | held against | test |
| --- | --- | --- |
"""

TRAP_HEAD = """
## The traps

Each has its handling taken out in a test, which must then see the update go wrong, or the run fail with one message
(`tests/distributed/test_traps.py`; a name alone is that of the function in `tests/distributed/traps.py`). What is
refused by name at the first step stands with *refused*: the tests see the refusal, and the wrong update without it.
Traps that show in a smaller test than a run stand at the end, with that test.

| what goes wrong without its handling | seen in | test |
| --- | --- | --- |
"""


def row(pool: RankPool, case: Case) -> str:
    """One line of the table."""
    ranks = pool.run(layout_worker, case.world, case, steps=case.steps, timeout=200)
    told = None
    if case.block == "bucket":
        told = {name: bucket for rank in ranks for name, bucket in rank["buckets"].items()}
    reference = pool.run(reference_worker, 1, case, step=case.steps - 1, buckets=told, timeout=200)[0]
    worst, gramian = max(errors(ranks, reference).values()), gramian_error(ranks, reference)
    cells = [
        case.name, case.world, case.tp, case.pp, case.cp, case.ep, case.dp, case.lanes, case.objectives, case.slots,
        case.method, case.block, f"{worst:.0e}", f"{gramian:.0e}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |\n"


def lists() -> str:
    """The traps with their tests, and what other tests hold."""
    text = TRAP_HEAD
    seen = [(name, case.name) for name, case, *_ in (*TRAPS, *OTHERS)]
    for name, where in (*seen, *((name, f"{case.name}: refused") for name, case, *_ in REFUSED)):
        what = (getattr(traps, name).__doc__ or "").strip().rstrip(".")
        text += f"| {what} | {where} | `{name}` |\n"
    text += "".join(f"| {what} | {where} | `{test}` |\n" for what, where, test in ELSEWHERE)
    return text + HELD_HEAD + "".join(f"| {what} | {how} | `{test}` |\n" for what, how, test in HELD)


def main() -> None:
    page, words = Path(sys.argv[1]), sys.argv[2:]
    lines = page.read_text(encoding="utf-8").splitlines(keepends=True) if page.exists() else []
    cases = (*CASES, *BUCKETS)
    rows = {case.name: line for case in cases for line in lines if line.startswith(f"| {case.name} |")}
    missing = [case for case in cases if case.name not in rows]
    known = [case for case in cases if case.name in rows]
    again = [case for case in known if not words or any(word in case.name for word in words)]
    pool, started, load = RankPool(), time.time(), os.getloadavg()[0]
    for done, case in enumerate((*missing, *again), start=1):
        rows[case.name] = row(pool, case)
        seconds = time.time() - started
        head = HEAD.format(done=done, rows=len(cases), seconds=seconds, cores=os.cpu_count(), load=load)
        table = "".join(rows.get(case.name, "") for case in cases)
        page.write_text(head + table + lists(), encoding="utf-8")
    pool.close()


if __name__ == "__main__":
    main()
