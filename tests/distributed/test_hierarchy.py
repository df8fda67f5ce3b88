"""The exchange in two stages: the update of the flat one, and bytes that stay inside nodes."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_moo.buckets.hierarchy import between_nodes, choose_size, common_size
from megatron_moo.buckets.wire import row_bytes
from megatron_moo.training.evidence import same_cosine
from tests.distributed.assemble import errors, gramian_error, whole_update
from tests.distributed.case import Case
from tests.distributed.matrix import MOE, OVERLAP, SEQUENCE, SMALL_BUCKETS, VIRTUAL
from tests.distributed.ranks import layout_worker, reference_worker
from tests.distributed.test_modes import STILL
from tests.pool import RankPool


def two_stages(name: str, flags: tuple[str, ...] = (), **kw: object) -> Case:
    """Parameters that stay, so that the reference of step 1 serves (step 0 goes flat)."""
    settings = {"method": "cagrad", "together": True, "exchange": "hierarchical", "ranks_per_node": 2, **kw}
    return Case(name, flags=(*flags, *STILL), **settings)  # type: ignore[arg-type]


CASES = (
    two_stages("dp 4, 2 objectives", dp=4, flags=SMALL_BUCKETS),
    two_stages("dp 4, 2 objectives, 2 slots", dp=4, slots=2, objectives=4, method="mgda"),
    two_stages("dp 4, a slot is one objective", dp=4, slots=2, flags=OVERLAP),
    two_stages("dp 8, 2 objectives", dp=8, ranks_per_node=4, method="mgda", flags=OVERLAP),
    two_stages("dp 8, 4 objectives, block param", dp=8, objectives=4, block="param", flags=SMALL_BUCKETS),
    two_stages("recompute", dp=4, slots=3, objectives=6, recompute=1),
    two_stages("bf16 rows", dp=4, slots=2, objectives=4, rows="bf16", tolerance=5e-3),
    two_stages("tp 2, sp", dp=4, tp=2, ranks_per_node=4, flags=(*SEQUENCE, *OVERLAP)),
    two_stages("pp 2, tied", dp=4, pp=2, micro_batches=2, flags=OVERLAP),
    two_stages("pp 2, interleaved", dp=4, pp=2, layers=4, micro_batches=2, flags=(*VIRTUAL, *OVERLAP)),
    two_stages("cp 2: peers share an objective", dp=2, cp=2, flags=OVERLAP),
    two_stages("moe, ep 2: peers share an objective", dp=4, ep=2, method="mgda", flags=MOE),
    two_stages("adam's metric", dp=4, metric="adam"),
)


_SLOW = ("dp 8", "pp 2, interleaved", "bf16 rows", "recompute")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] if c.name.startswith(_SLOW) else [], id=c.name) for c in CASES],
)
def test_the_update_is_the_flat_one(pool: RankPool, case: Case) -> None:
    """The second step, in two stages, against the flat exchange (1e-6) and the single process."""
    ranks = pool.run(layout_worker, case.world, case, steps=2)
    flat = pool.run(layout_worker, case.world, dataclasses.replace(case, exchange="flat"), steps=2)
    if case.metric == "euclidean":
        reference = pool.run(reference_worker, 1, case, step=1)[0]
        assert gramian_error(ranks, reference) <= case.tolerance
        assert max(errors(ranks, reference).values()) <= case.tolerance
    one, other = whole_update(ranks), whole_update(flat)
    total = sum(float(value.square().sum()) for value in other.values()) ** 0.5
    off = sum(float((one[name] - value).square().sum()) for name, value in other.items()) ** 0.5
    assert off <= (1e-6 if case.rows == "fp32" else case.tolerance) * total
    if case.ep == 1:
        assert [rank["bytes"] for rank in ranks] == [rank["bytes"] for rank in flat], "as many bytes"
    assert sum(rank["between"] for rank in ranks) < sum(rank["between"] for rank in flat), (
        "fewer between nodes"
    )
    assert all(rank["timeouts_s"] == {600.0} for rank in ranks), (
        "Megatron's, not torch's default of a new group"
    )


@pytest.mark.parametrize("wire", ["bf16", "fp8"])
def test_rounded_rows_travel_across_objectives(pool: RankPool, wire: str) -> None:
    """Sums inside a group are not rounded, so that the wire's error is one rounding of a row."""
    case = two_stages(wire, dp=4, method="mean", wire=wire, flags=SMALL_BUCKETS)
    rounded = whole_update(pool.run(layout_worker, 4, case, steps=2))
    exact = whole_update(pool.run(layout_worker, 4, dataclasses.replace(case, wire="fp32"), steps=2))
    bound = {"bf16": 4e-3, "fp8": 4e-2}[wire]
    for name, value in exact.items():
        assert 0 < float((rounded[name] - value).norm()) < bound * float(value.norm()), name


def test_bytes_between_nodes(pool: RankPool) -> None:
    """Counted bytes are the formula, on a placement of two ranks a node."""
    case = two_stages("dp 4", dp=4)
    for exchange, size in (("flat", 1), ("hierarchical", 2), ("auto", 2)):
        ranks = pool.run(layout_worker, 4, dataclasses.replace(case, exchange=exchange), steps=2)
        whole = ranks[0]["bytes"] * 4 // 3  # a rank sends 3/4 of the model's gradient
        counted = sum(rank["between"] for rank in ranks)
        assert counted == pytest.approx(between_nodes([0, 0, 1, 1], size) * whole, rel=1e-6), exchange


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp8"])
def test_bytes_of_a_narrow_wire(pool: RankPool, wire: str) -> None:
    """Stage 1 is fp32 always, stage 2 and the flat exchange are the wire's: counted is the formula."""
    for exchange, size in (("flat", 1), ("hierarchical", 2)):
        case = two_stages("dp 4", dp=4, wire=wire, exchange=exchange)
        values = pool.run(layout_worker, 4, dataclasses.replace(case, wire="fp32"), steps=2)[0]["bytes"] // 3
        inside = values * 4 * (size - 1) // size
        across = (4 // size - 1) * row_bytes(values // 4, wire)
        for rank in pool.run(layout_worker, 4, case, steps=2):
            assert rank["bytes"] == inside + across, exchange


def test_auto_stays_flat_on_one_node_and_between_different_objectives(pool: RankPool) -> None:
    one_node = two_stages("one node", dp=4, exchange="auto", ranks_per_node=4)
    flat = dataclasses.replace(one_node, exchange="flat")
    apart = dataclasses.replace(one_node, ranks_per_node=2, together=False)
    for case, same in ((one_node, flat), (apart, dataclasses.replace(apart, exchange="flat"))):
        one = pool.run(layout_worker, 4, case, steps=2)
        other = pool.run(layout_worker, 4, same, steps=2)
        for mine, theirs in zip(one, other, strict=True):
            assert all(torch.equal(value, theirs["params"][name]) for name, value in mine["params"].items())
            assert mine["between"] == theirs["between"]


def test_hierarchical_is_refused_where_nothing_can_be_grouped(pool: RankPool) -> None:
    with pytest.raises(
        AssertionError, match="--moo-exchange hierarchical: no two neighbouring ranks compute the same"
    ):
        pool.run(layout_worker, 2, two_stages("dp 2", dp=2))


def test_noise_floor_in_flat_steps(pool: RankPool) -> None:
    """Step 0 goes flat: two lanes of one objective are apart, and their cosine can be taken."""
    case = two_stages("dp 4", dp=4)
    first, second = (pool.run(layout_worker, 4, case, steps=steps)[0]["same"] for steps in (1, 2))
    assert -1.0 <= (same_cosine(first) or 2.0) <= 1.0
    assert same_cosine(second) is None


def test_eight_nodes_of_eight() -> None:
    """DESIGN section 3: flat sends seven buckets out of each node, two stages 7/8, a ring 63/64."""
    nodes = [rank // 8 for rank in range(64)]
    assert between_nodes(nodes, 1) / 8 == pytest.approx(7.0)
    assert between_nodes(nodes, 8) / 8 == pytest.approx(7 / 8)
    assert choose_size("auto", 8, nodes) == 8
    assert choose_size("auto", 8, [0] * 64) == 1
    assert choose_size("flat", 8, nodes) == 1


@pytest.mark.parametrize(
    ("members", "objectives", "per_node", "size"),
    [(48, 8, 8, 2), (40, 8, 8, 1), (20, 4, 4, 1), (12, 4, 4, 1)],
)
def test_auto_counts_the_wire(members: int, objectives: int, per_node: int, size: int) -> None:
    """Stage 1 between nodes costs fp32: with fp8 rows a group that crosses nodes can send more than the flat one."""
    nodes = [rank // per_node for rank in range(members)]
    chosen = choose_size("auto", members // objectives, nodes, "fp8")
    assert chosen == size
    assert between_nodes(nodes, chosen, "fp8") <= between_nodes(nodes, 1, "fp8")


def test_common_size() -> None:
    lanes = tuple(range(8))
    assert common_size([[[0, 0, 0, 0, 1, 1, 1, 1]]], lanes) == 4
    assert common_size([[[0, 0, 0, 0, 1, 1, 2, 2]]], lanes) == 2
    assert common_size([[[0, 0, 0, 1, 1, 1, 2, 2]]], lanes) == 1
    assert common_size([[[0] * 8], [[0, 0, 1, 1, 2, 2, 3, 3]]], lanes) == 2
    assert common_size([[[0, 1]]], (0, 0, 1, 1)) == 2, "expert-parallel peers share a lane"
