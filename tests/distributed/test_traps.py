"""Every trap bites: with its handling removed the update is wrong, or the run fails, in the layout that needs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import ranks, traps
from tests.distributed.assemble import errors
from tests.distributed.case import NO_FP32_ACCUMULATION, STILL, Case
from tests.distributed.matrix import HELD, MOE, OVERLAP, SEQUENCE, SMALL_BUCKETS, TWO_INSTANCES, VIRTUAL
from tests.distributed.ranks import layout_worker, reference_worker, train_steps
from tests.pool import RankError, RankPool

DROPOUT = ("--attention-dropout", "0.2", "--hidden-dropout", "0.2")

# Held against the single process: the trap, its layout, and the message where the run fails instead of going wrong.
TRAPS: tuple[tuple[str, Case, str | None], ...] = (
    ("count_replicas_everywhere", Case("tp 2", dp=2, tp=2, method="cagrad"), None),
    ("forget_sequence_parallel_sums", Case("tp 2, sp", dp=2, tp=2, method="cagrad", flags=SEQUENCE), None),
    ("forget_tied_embedding", Case("pp 2", dp=2, pp=2, method="cagrad", flags=OVERLAP), None),
    ("forget_tokens", Case("dp 2", dp=2, method="cagrad"), None),
    ("forget_to_reduce_gramians", Case("dp 2", dp=2, method="cagrad"), None),
    ("forget_expert_peers", Case("ep 2", dp=4, ep=2, method="cagrad", flags=MOE), None),
    ("finish_twice", Case("dp 2", dp=2, method="cagrad"), r"in finish_grad_sync[\s\S]*in _park[\s\S]*KeyError"),
    ("forget_kept_slots", Case("2 slots", dp=1, slots=2, method="cagrad"), None),
    ("forget_instances", Case("2 instances", dp=4, method="cagrad", flags=TWO_INSTANCES), None),
    ("put_buckets_together",
     Case("pp 2, interleaved", dp=2, pp=2, layers=4, micro_batches=2, method="cagrad", flags=(*VIRTUAL, *OVERLAP)),
     "Only 1 bucket supported with reduce_scatter_with_fp32_accumulation"),
    ("combine_forwards", Case("dp 2, small buckets", dp=2, method="cagrad", flags=SMALL_BUCKETS), None),
    ("forget_to_mask_bad_rows",
     Case("a bad language", dp=2, slots=2, objectives=4, method="cagrad", poison=(2,)), None),
)  # fmt: skip

# Held against another run: the name, its layout, what says whether the handling is there.
GATHERS = Case("dp 2, overlapped gather, 2 slots", dp=2, slots=2, objectives=4, method="cagrad",
               flags=(*SMALL_BUCKETS, "--overlap-param-gather"))  # fmt: skip
GATHERS_OF_CHUNKS = Case("pp 2, interleaved, overlapped gather, 2 slots", dp=2, pp=2, layers=4, slots=2, objectives=4,
                         micro_batches=2, method="cagrad",
                         flags=(*VIRTUAL, *OVERLAP, "--overlap-param-gather"))  # fmt: skip
REPEATS = Case("3 slots, recompute, dropout", dp=1, slots=3, objectives=3, method="cagrad", flags=DROPOUT)
RESUMES = Case("dp 2, resumed", dp=2, method="cagrad")
REORDERED = Case(
    "dp 2, small buckets, exchanged in another order", dp=2, method="cagrad", flags=SMALL_BUCKETS
)
OTHERS: tuple[tuple[str, Case], ...] = (
    ("forget_who_is_alive", REORDERED),
    ("gather_in_every_pass", GATHERS),
    ("gather_in_every_pass", GATHERS_OF_CHUNKS),
    ("forget_random_state", REPEATS),
    ("resume_as_megatron_does", RESUMES),
)


def averaged_worker(rank: int, world: int, case: Case, **kw: Any) -> dict[str, Any]:
    """Train with norms whose gradient is that of the whole only on average over TP (as an indexer of DSA has)."""

    def average(model: list[Any]) -> None:
        for chunk in model:
            for name, param in chunk.named_parameters():
                if "norm" in name:
                    param.sequence_parallel, param.average_gradients_across_tp_domain = False, True
                    param.register_hook(lambda grad: grad * case.tp)  # these were summands

    return changed_worker(average, rank, world, case, **kw)


def reordered_worker(rank: int, world: int, case: Case, **kw: Any) -> dict[str, Any]:
    """Train a step whose buckets are exchanged from the last to the first."""
    return changed_worker(lambda model: model[0].bucket_groups.reverse(), rank, world, case, **kw)


def changed_worker(change: Callable[[list[Any]], None], *args: Any, **kw: Any) -> dict[str, Any]:
    """``layout_worker`` on model chunks that were changed after they were built."""
    stock = ranks.build

    def build(*given: Any) -> tuple[list[Any], Any, Any]:
        built = stock(*given)
        change(built[0])
        return built

    ranks.build = build
    return layout_worker(*args, **kw)


# Guarded by tests of another kind: what goes wrong, where it is seen, the test.
ELSEWHERE: tuple[tuple[str, str, str], ...] = (
    ("Gradients of q/k norms are partial sums over TP, also without sequence parallelism", "tp 2, qk norm",
     "tests/distributed/test_layouts.py::test_update_equals_single_process"),
    ("Megatron's finalize is given the tokens and divides the update, a mean over them already, a second time", "dp 2",
     "tests/distributed/test_layouts.py::test_update_equals_single_process"),
    ("Tokens are counted on every pipeline stage, though only the last has them", "pp 2",
     "tests/distributed/test_layouts.py::test_update_equals_single_process"),
    ("An expert that a language did not reach has a row of zeros, and stands still", "ep 2, 16 experts",
     "tests/distributed/test_experts.py::test_an_unreached_expert_has_no_row"),
    ("Under `--moo-every` a language weighs 0 in an expert that the solve saw without it", "ep 2, 16 experts",
     "tests/distributed/test_experts.py::test_an_expert_that_is_reached_between_solves_moves"),
    ("Receive buffers lie beside the activations of the next forward pass", "every layout without pipeline stages",
     "tests/distributed/test_layouts.py::test_update_equals_single_process"),
    ("Random methods draw by the place of a block instead of its name", "blocks in another order",
     "tests/unit/moo/test_state.py::test_state_and_draws_follow_the_name_of_a_block"),
    ("Draws do not follow seed and step", "one Gramian, other seeds and steps",
     "tests/unit/moo/test_state.py::test_draws_are_a_function_of_seed_step_and_block"),
    ("State of a method is kept by the place of a block", "blocks in another order",
     "tests/unit/moo/test_state.py::test_state_and_draws_follow_the_name_of_a_block"),
    ("mean, sum, fixed, token and random renormalise over absent rows", "a row of zeros, NaN or infinity",
     "tests/unit/moo/test_rows.py::test_the_result_is_the_one_without_the_row"),
    ("`token` is not the update of plain Megatron on the same batch", "20 steps",
     "tests/distributed/test_megatron.py::test_token_is_megatrons_own_training"),
    ("`mean` with equal tokens is not the update of plain Megatron", "dp 2",
     "tests/distributed/test_megatron.py::test_mean_is_megatrons_own_training_with_equal_tokens"),
    ("Megatron's own check of gradients ends the run before a bad row is masked", "a bad language",
     "tests/distributed/test_bad_gradients.py::test_the_update_is_the_one_without_it"),
    ("The loss scale of fp16 enters the Gramian squared, rows are averaged in the collective, auxiliary losses of "
     "experts push every language: refused or warned of", "the support table",
     "tests/distributed/test_support.py::test_row"),
    ("Buckets of another DDP model are taken for ours and stay unreduced", "a tensor that is not ours",
     "tests/unit/buckets/test_exchange.py::test_what_is_not_ours_goes_to_the_stock_function"),
    ("The replaced function stays in Megatron when the run is over", "one process",
     "tests/unit/training/test_seam.py::test_removal_leaves_no_trace"),
    ("A bucket that was exchanged in an earlier pass counts as free in the next", "buckets in another order",
     "tests/unit/buckets/test_parking.py::test_the_next_pass_starts_with_live_buckets"),
    ("Gramians add up millions of values in fp32", "8M values",
     "tests/unit/kernels/test_twins.py::test_gramian_of_millions_of_values"),
)  # fmt: skip

# Refused by name; what would happen otherwise: the trap, its layout, the refusal, who trains, and for how many steps.
REFUSED: tuple[tuple[str, Case, str, Callable[..., dict[str, Any]], int], ...] = (
    ("lose_the_handle",
     Case("dp 2, overlap, without the flag", dp=2, method="cagrad", flags=(*OVERLAP, NO_FP32_ACCUMULATION)),
     "--ddp-reduce-scatter-with-fp32-accumulation: without it .* gradients stay unreduced", layout_worker, 1),
    ("all_reduce_instead",
     Case("dp 2, overlap, saved weight gradients", dp=2, method="cagrad",
          flags=(*SMALL_BUCKETS, *STILL, "--save-wgrads-interval", "2")),
     "--save-wgrads-interval: an all-reduced gradient bypasses MOO", layout_worker, 2),
    ("forget_averages_over_tp",
     Case("tp 2, averaged norms", dp=2, tp=2, block="module", method="cagrad", flags=SEQUENCE),
     "averaged over tensor-parallel ranks|average_gradients_across_tp_domain", averaged_worker, 1),
)  # fmt: skip
_REFUSED = pytest.mark.parametrize(
    ("trap", "case", "message", "worker", "steps"), REFUSED, ids=[row[0] for row in REFUSED]
)


@pytest.mark.parametrize(("trap", "case", "message"), TRAPS, ids=[name for name, *_ in TRAPS])
def test_trap_bites(pool: RankPool, trap: str, case: Case, message: str | None) -> None:
    check_trap(pool, trap, case, layout_worker, message)


def test_buckets_may_be_exchanged_in_any_order(pool: RankPool) -> None:
    check_trap(pool, "forget_who_is_alive", REORDERED, reordered_worker)


def check_trap(
    pool: RankPool, trap: str, case: Case, worker: Callable[..., dict[str, Any]], message: str | None = None
) -> None:
    """The update is the single process's, and no longer when the trap's handling is taken out."""
    reference = pool.run(reference_worker, 1, case, timeout=120)[0]
    sound = errors(pool.run(worker, case.world, case, timeout=120), reference)
    assert max(sound.values()) <= case.tolerance
    assert bites(pool, trap, case, reference, worker, message)


def bites(
    pool: RankPool,
    trap: str,
    case: Case,
    reference: dict[str, Any],
    worker: Callable[..., Any],
    message: str | None = None,
) -> bool:
    """Whether the update goes wrong, or the run fails with ``message``, without the trap's handling.

    Raises:
        AssertionError: for any other failure: what breaks by itself has tried nothing.
    """
    if message is not None:
        with pytest.raises(AssertionError, match=message):
            errors(pool.run(worker, case.world, case, broken=trap, timeout=120), reference)
        return True
    found = errors(pool.run(worker, case.world, case, broken=trap, timeout=120), reference)
    worst = max(found.values(), key=lambda value: (value != value, value))
    return worst != worst or worst > 10 * case.tolerance


@_REFUSED
def test_it_is_refused(
    pool: RankPool, tmp_path: Path, trap: str, case: Case, message: str, worker: Any, steps: int
) -> None:
    case = replace(case, flags=(*case.flags, "--save", str(tmp_path), "--save-interval", "100"))
    with pytest.raises(RankError, match=message):
        pool.run(worker, case.world, case, steps=steps, timeout=120)


@pytest.mark.slow
@_REFUSED
def test_what_is_refused_would_go_wrong(
    pool: RankPool, tmp_path: Path, trap: str, case: Case, message: str, worker: Any, steps: int
) -> None:
    """Without the refusal the run ends, with another update: nobody would see it."""
    reference = pool.run(reference_worker, 1, case, step=steps - 1, timeout=120)[0]
    case = replace(case, flags=(*case.flags, "--save", str(tmp_path), "--save-interval", "100"))
    found = errors(pool.run(worker, case.world, case, broken=trap, steps=steps, timeout=120), reference)
    assert max(found.values()) > 10 * case.tolerance


def gather_worker(rank: int, world: int, case: Case, broken: str | None = None) -> list[int]:
    """How often this rank has dispatched parameter gathers by the begin of every step; last, its bucket groups."""
    from megatron.core.distributed.param_and_grad_buffer import _ParamAndGradBucketGroup as Group

    from megatron_moo.buckets.step import MooStep

    calls, at_begin, groups = [0], [], set()
    stock, begin = Group.start_param_sync, MooStep.begin

    def counted(self: Any, *args: Any, **kw: Any) -> Any:
        calls[0] += 1
        groups.add(id(self))
        return stock(self, *args, **kw)

    def noted(self: MooStep, step: int) -> None:
        at_begin.append(calls[0])
        begin(self, step)

    Group.start_param_sync, MooStep.begin = counted, noted
    train_steps(case, steps=3, broken=broken)
    return [*at_begin, len(groups)]


@pytest.mark.parametrize("case", [GATHERS, GATHERS_OF_CHUNKS], ids=lambda case: case.name)
def test_parameters_are_gathered_once_a_step(pool: RankPool, case: Case) -> None:
    ranks = pool.run(gather_worker, case.world, case)
    again = pool.run(gather_worker, case.world, case, broken="gather_in_every_pass")
    for one, other in zip(ranks, again, strict=True):
        gathers = one[2] - one[1]  # the second step's: the first gathers nothing
        assert gathers == one[-1] > 1 and other[2] - other[1] == 2 * gathers


def test_repeated_passes_need_their_random_state(pool: RankPool) -> None:
    kept = pool.run(layout_worker, 1, REPEATS)[0]["gramians"][0]
    again = replace(REPEATS, recompute=1)
    sound = pool.run(layout_worker, 1, again)[0]["gramians"][0]
    torch.testing.assert_close(sound, kept, rtol=1e-6, atol=1e-12)
    broken = pool.run(layout_worker, 1, again, broken="forget_random_state")[0]["gramians"][0]
    assert (broken - kept).abs().max() > 1e-2 * kept.abs().max()


def test_resuming_needs_the_repairs(pool: RankPool, tmp_path: Path) -> None:
    """Two steps, a checkpoint, and two more are bitwise four steps; without the repairs nothing is loaded."""
    kept = ("--save", str(tmp_path), "--save-interval", "100", "--dist-ckpt-optim-fully-reshardable")
    whole = pool.run(layout_worker, 2, RESUMES, steps=4)
    pool.run(layout_worker, 2, replace(RESUMES, flags=kept), steps=2, save=True)
    rest = replace(RESUMES, flags=("--load", str(tmp_path), "--dist-ckpt-optim-fully-reshardable"))
    assert _differs(whole, pool.run(layout_worker, 2, rest, steps=2)) == []
    # Megatron asks for the step that the parameters have in common, and finds none.
    with pytest.raises(RankError, match=r"assert len\(steps\) == 1"):
        pool.run(layout_worker, 2, rest, steps=2, broken="resume_as_megatron_does")


def _differs(ranks: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[str]:
    return [
        name
        for one, other in zip(ranks, others, strict=True)
        for name, value in one["params"].items()
        if not torch.equal(value, other["params"][name])
    ]


def test_a_trap_that_breaks_by_itself_does_not_bite() -> None:
    class Broken:
        def run(self, *args: Any, **kw: Any) -> list:
            raise RankError("layout_worker", 1, {0: "AttributeError: no such handling"})

    case = Case("one process")
    with pytest.raises(AssertionError, match="no such handling"):
        bites(Broken(), "any", case, {}, layout_worker)  # type: ignore[arg-type]
    with pytest.raises(AssertionError, match="another message"):
        bites(Broken(), "any", case, {}, layout_worker, "another message")  # type: ignore[arg-type]


def test_every_trap_is_used() -> None:
    public = {name for name in vars(traps) if not name.startswith("_") and callable(getattr(traps, name))}
    modules = {"parking", "placement", "replay", "seam", "step"}
    assert {name for name in public if name.islower()} - modules == {
        row[0] for row in (*TRAPS, *OTHERS, *REFUSED)
    }


def test_every_test_that_is_named_is_there() -> None:
    for _, _, test in (*ELSEWHERE, *HELD):
        path, name = test.split("::")
        assert f"def {name}(" in (Path(__file__).parents[2] / path).read_text(encoding="utf-8"), test
