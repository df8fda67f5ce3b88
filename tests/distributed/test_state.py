"""What a step remembers: the same keys on every rank, and a continuation that is bitwise the uninterrupted run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_moo.moo import METHODS
from tests.distributed.assemble import whole_update
from tests.distributed.case import Case
from tests.distributed.matrix import OVERLAP, SMALL_BUCKETS
from tests.distributed.ranks import layout_worker
from tests.distributed.test_modes import STILL
from tests.faults.record import record
from tests.pool import RankPool

# Every method that training takes and that remembers something by the names of blocks.
STATEFUL = tuple(
    f"{name}:cagrad" if name == "ema" else name
    for name, spec in METHODS.items()
    if spec.state and "cross" not in (*spec.needs, *spec.takes)
)
RESHARDABLE = "--dist-ckpt-optim-fully-reshardable"


@pytest.mark.parametrize("method", [*STATEFUL, "pcgrad", "random"])
def test_methods_go_on_bitwise(pool: RankPool, method: str) -> None:
    case = Case(method, dp=2, slots=2, objectives=3, method=method, flags=STILL)
    whole = pool.run(layout_worker, 2, case, steps=4)
    half = pool.run(layout_worker, 2, case, steps=2)
    assert half[0]["state"].keys() == half[1]["state"].keys()
    rest = pool.run(layout_worker, 2, case, steps=2, first=2, state=half[0]["state"])
    for one, other in zip(whole[0]["weights"][2:], rest[0]["weights"], strict=True):
        assert torch.equal(one, other)


_FEW = ("coba",)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=() if name in _FEW else pytest.mark.slow) for name in STATEFUL]
)
def test_what_a_method_remembers_goes_through_a_checkpoint(
    pool: RankPool, tmp_path: Path, method: str
) -> None:
    """Two steps, a checkpoint, two more: bitwise four steps. At another PP what it remembers is bitwise the same."""
    case = Case(method, dp=2, slots=2, objectives=3, method=method)
    whole = pool.run(layout_worker, 2, case, steps=4)
    kept = dataclasses.replace(case, flags=("--save", str(tmp_path), "--save-interval", "100", RESHARDABLE))
    half = pool.run(layout_worker, 2, kept, steps=2, save=True)
    goes_on = dataclasses.replace(case, flags=("--load", str(tmp_path), RESHARDABLE))
    rest = pool.run(layout_worker, 2, goes_on, steps=2)
    for one, other in zip(whole[0]["weights"][2:], rest[0]["weights"], strict=True):
        assert torch.equal(one, other)
    remembered = tensors_of(half[0]["state"]["method"])
    assert remembered, "it remembers something"
    cut = dataclasses.replace(goes_on, pp=2)
    for rank in pool.run(layout_worker, 4, cut, steps=0):
        found = tensors_of(rank["state"]["method"])
        assert found.keys() == remembered.keys()
        assert all(torch.equal(value, found[name]) for name, value in remembered.items())
    for rank in pool.run(layout_worker, 4, cut, steps=1):
        torch.testing.assert_close(rank["weights"][0], whole[0]["weights"][2], rtol=1e-3, atol=1e-5)
    record(6, f"{method} through a checkpoint, bitwise, and at another PP", 1)


def tensors_of(value: Any, name: str = "") -> dict[str, torch.Tensor]:
    """Every tensor and number of a nested state, by its path."""
    if isinstance(value, dict):
        return {k: v for key, inner in value.items() for k, v in tensors_of(inner, f"{name}/{key}").items()}
    if isinstance(value, list | tuple):
        return {k: v for at, inner in enumerate(value) for k, v in tensors_of(inner, f"{name}/{at}").items()}
    if isinstance(value, torch.Tensor):
        return {name: value}
    return {name: torch.tensor(value)} if isinstance(value, int | float) else {}


def test_cached_weights_go_on(pool: RankPool) -> None:
    case = Case("every 3", dp=2, method="cagrad", every=3, flags=STILL)
    whole = pool.run(layout_worker, 2, case, steps=3)
    half = pool.run(layout_worker, 2, case, steps=1)
    # The next solve is due at step 3: without the cache step 1 would solve again.
    rest = pool.run(layout_worker, 2, case, steps=2, first=1, state=half[0]["state"])
    for one, other in zip(whole[0]["weights"], rest[0]["weights"], strict=False):
        assert torch.equal(one, other)
    for one, other in zip(whole[0]["grads"], rest[0]["grads"], strict=True):
        torch.testing.assert_close(one["values"], other["values"], rtol=0, atol=0)


@pytest.mark.slow
def test_cached_weights_go_through_a_checkpoint(pool: RankPool, tmp_path: Path) -> None:
    """Solved at step 0, saved after step 1, due again at step 3; also where the model lies on two stages."""
    case = Case("every 3", dp=2, slots=2, objectives=3, method="cagrad", every=3)
    whole = pool.run(layout_worker, 2, case, steps=4)
    kept = dataclasses.replace(case, flags=("--save", str(tmp_path), "--save-interval", "100", RESHARDABLE))
    pool.run(layout_worker, 2, kept, steps=2, save=True)
    goes_on = dataclasses.replace(case, flags=("--load", str(tmp_path), RESHARDABLE))
    rest = pool.run(layout_worker, 2, goes_on, steps=2)
    cut = pool.run(layout_worker, 4, dataclasses.replace(goes_on, pp=2), steps=2)
    assert not torch.equal(whole[0]["weights"][2], whole[0]["weights"][3]), "step 3 solves again"
    for one, other in zip(whole[0]["weights"][2:], rest[0]["weights"], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole[0]["grads"], rest[0]["grads"], strict=True):
        assert torch.equal(one["values"], other["values"])
    for rank in cut:
        assert torch.equal(rank["weights"][0], whole[0]["weights"][2])
        torch.testing.assert_close(rank["weights"][1], whole[0]["weights"][3], rtol=1e-3, atol=1e-5)
    mine, theirs = whole_update(cut), whole_update(whole)
    total = sum(float(value.square().sum()) for value in theirs.values()) ** 0.5
    assert sum(float((mine[n] - theirs[n]).square().sum()) for n in theirs) ** 0.5 <= 1e-4 * total
    record(6, "weights between two solves through a checkpoint, bitwise, and at another PP", 1)


def test_buckets_do_not_move_to_another_layout(pool: RankPool) -> None:
    """Other buckets hold other parameters: weights and state by bucket name would mean something else."""
    case = Case("buckets", dp=2, method="cagrad", block="bucket", flags=SMALL_BUCKETS)
    state = pool.run(layout_worker, 2, case)[0]["state"]
    pool.run(layout_worker, 2, case, first=1, state=state)
    other = dataclasses.replace(case, flags=(*OVERLAP, "--ddp-bucket-size", "9000"))
    with pytest.raises(
        AssertionError, match="--moo-block bucket: the checkpoint's blocks hold other parameters"
    ):
        pool.run(layout_worker, 2, other, first=1, state=state)
