"""Every trap bites: with its handling removed the update is wrong, or the run fails, in the layout that needs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import traps
from tests.distributed.assemble import errors
from tests.distributed.case import Case
from tests.distributed.matrix import MOE, OVERLAP, SEQUENCE, SMALL_BUCKETS, TWO_INSTANCES, VIRTUAL
from tests.distributed.ranks import layout_worker, reference_worker, train_steps
from tests.pool import RankError, RankPool

DROPOUT = ("--attention-dropout", "0.2", "--hidden-dropout", "0.2")

# Held against the single process.
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
    ("put_buckets_together",
     Case("pp 2, interleaved", dp=2, pp=2, layers=4, micro_batches=2, method="cagrad", flags=(*VIRTUAL, *OVERLAP))),
    ("combine_forwards", Case("dp 2, small buckets", dp=2, method="cagrad", flags=SMALL_BUCKETS)),
    ("forget_to_mask_bad_rows", Case("a bad language", dp=2, slots=2, objectives=4, method="cagrad", poison=(2,))),
)  # fmt: skip

# Held against another run: the name, its layout, what says whether the handling is there.
GATHERS = Case("dp 2, overlapped gather, 2 slots", dp=2, slots=2, objectives=4, method="cagrad",
               flags=(*SMALL_BUCKETS, "--overlap-param-gather"))  # fmt: skip
REPEATS = Case("3 slots, recompute, dropout", dp=1, slots=3, objectives=3, method="cagrad", flags=DROPOUT)
RESUMES = Case("dp 2, resumed", dp=2, method="cagrad")
OTHERS: tuple[tuple[str, Case], ...] = (
    ("gather_in_every_pass", GATHERS),
    ("forget_random_state", REPEATS),
    ("resume_as_megatron_does", RESUMES),
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
    worst = max(found.values(), key=lambda value: (value != value, value))
    assert worst != worst or worst > 10 * case.tolerance


def gather_worker(rank: int, world: int, case: Case, broken: str | None = None) -> list[int]:
    """How often this rank has dispatched parameter gathers by the begin of every step."""
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

    from megatron_moo.buckets.step import MooStep

    calls, at_begin = [0], []
    stock, begin = Group.start_param_sync, MooStep.begin

    def counted(self: Any, *args: Any, **kw: Any) -> Any:
        calls[0] += 1
        return stock(self, *args, **kw)

    def noted(self: MooStep, step: int) -> None:
        at_begin.append(calls[0])
        begin(self, step)

    Group.start_param_sync, MooStep.begin = counted, noted
    train_steps(case, steps=4, broken=broken)
    return at_begin


def test_parameters_are_gathered_once_a_step(pool: RankPool) -> None:
    per_step = [(one[3] - one[2], one[3] - one[2] > 1) for one in pool.run(gather_worker, 2, GATHERS)]
    again = [one[3] - one[2] for one in pool.run(gather_worker, 2, GATHERS, broken="gather_in_every_pass")]
    for (gathers, several), twice in zip(per_step, again, strict=True):
        assert several and twice == 2 * gathers


def test_repeated_passes_need_their_random_state(pool: RankPool) -> None:
    kept = pool.run(layout_worker, 1, REPEATS)[0]["gramians"][0]
    again = replace(REPEATS, recompute=1)
    sound = pool.run(layout_worker, 1, again)[0]["gramians"][0]
    torch.testing.assert_close(sound, kept, rtol=1e-6, atol=1e-12)
    broken = pool.run(layout_worker, 1, again, broken="forget_random_state")[0]["gramians"][0]
    assert (broken - kept).abs().max() > 1e-2 * kept.abs().max()


def test_resuming_needs_the_repairs(pool: RankPool, tmp_path: Path) -> None:
    """Two steps, a checkpoint, and two more are bitwise four steps; without the repairs they are not, or fail."""
    kept = ("--save", str(tmp_path), "--save-interval", "100", "--dist-ckpt-optim-fully-reshardable")
    whole = pool.run(layout_worker, 2, RESUMES, steps=4)
    pool.run(layout_worker, 2, replace(RESUMES, flags=kept), steps=2, save=True)
    rest = replace(RESUMES, flags=("--load", str(tmp_path), "--dist-ckpt-optim-fully-reshardable"))
    assert _differs(whole, pool.run(layout_worker, 2, rest, steps=2)) == []
    try:
        broken = pool.run(layout_worker, 2, rest, steps=2, broken="resume_as_megatron_does")
    except (RankError, AssertionError):
        return
    assert _differs(whole, broken)


def _differs(ranks: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[str]:
    return [
        name
        for one, other in zip(ranks, others, strict=True)
        for name, value in one["params"].items()
        if not torch.equal(value, other["params"][name])
    ]


def test_every_trap_is_used() -> None:
    public = {name for name in vars(traps) if not name.startswith("_") and callable(getattr(traps, name))}
    modules = {"parking", "placement", "replay", "seam", "step"}
    assert {name for name in public if name.islower()} - modules == {name for name, _ in (*TRAPS, *OTHERS)}
