"""Every trap bites: with its handling removed the update is wrong, or the run fails, in the layout that needs it."""

from __future__ import annotations

import pytest

from tests.distributed import traps
from tests.distributed.assemble import errors
from tests.distributed.case import Case
from tests.distributed.matrix import MOE, OVERLAP, SEQUENCE, TWO_INSTANCES
from tests.distributed.ranks import layout_worker, reference_worker
from tests.pool import RankError, RankPool

TRAPS: tuple[tuple[str, Case], ...] = (
    ("count_replicas_everywhere", Case("tp 2", dp=2, tp=2, method="cagrad")),
    ("forget_sequence_parallel_sums", Case("tp 2, sp", dp=2, tp=2, method="cagrad", flags=SEQUENCE)),
    ("forget_tied_embedding", Case("pp 2", dp=2, pp=2, method="cagrad", flags=OVERLAP)),
    ("forget_tokens", Case("dp 2", dp=2, method="cagrad")),
    ("forget_to_reduce_gramians", Case("dp 2", dp=2, method="cagrad")),
    ("forget_expert_peers", Case("ep 2", dp=4, ep=2, method="cagrad", flags=MOE)),
    ("finish_twice", Case("dp 2", dp=2, method="cagrad")),
    ("forget_kept_slots", Case("2 slots", dp=1, slots=2, method="cagrad")),
    ("forget_instances", Case("2 instances", dp=4, method="cagrad", flags=TWO_INSTANCES)),
)


@pytest.mark.parametrize(("trap", "case"), TRAPS, ids=[name for name, _ in TRAPS])
def test_trap_bites(pool: RankPool, trap: str, case: Case) -> None:
    reference = pool.run(reference_worker, 1, case, timeout=120)[0]
    sound = errors(pool.run(layout_worker, case.world, case, timeout=120), reference)
    assert max(sound.values()) <= case.tolerance
    try:
        found = errors(pool.run(layout_worker, case.world, case, broken=trap, timeout=120), reference)
    except (RankError, AssertionError):
        return  # the ranks refused, or disagree about what must be the same
    assert max(found.values()) > 10 * case.tolerance


def test_every_trap_is_used() -> None:
    public = {name for name in vars(traps) if not name.startswith("_") and callable(getattr(traps, name))}
    assert {name for name in public if name.islower()} - {"placement", "seam", "step"} == {
        name for name, _ in TRAPS
    }
