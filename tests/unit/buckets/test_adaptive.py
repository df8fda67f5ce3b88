"""Blocks that follow conflict: what splits, what merges, and that noise alone does neither."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from megatron_moo.buckets.adaptive import AdaptiveBlocks, CosineStatistics, layer_of
from megatron_moo.buckets.blocks import EXCLUDED
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.weights import WeightSolver
from megatron_moo.errors import MooError
from megatron_moo.moo import make_method

MODULES = (
    "decoder.layers.0.attention", "decoder.layers.0.mlp", "decoder.layers.0.norms",
    "decoder.layers.1.attention", "decoder.layers.1.mlp", "decoder.layers.1.norms",
    "embedding", EXCLUDED, "final_norm", "head",
)  # fmt: skip
LAYERS = ["decoder.layers.0", "decoder.layers.1", "embedding", EXCLUDED, "head"]
CPU = torch.device("cpu")


def gramians(cosines: Callable[[str], float], seed: int, noise: float = 0.1) -> torch.Tensor:
    """Gramians of two objectives with a given mean cosine per module, and noise from step to step."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for name in MODULES:
        c = cosines(name) + noise * float(torch.randn((), generator=generator))
        found.append([[1.0, c], [c, 1.0]])
    return torch.tensor(found, dtype=torch.float64)


def after(
    cosines: Callable[[str], float], steps: int = 20, every: int = 20, noise: float = 0.1
) -> AdaptiveBlocks:
    blocks = AdaptiveBlocks(MODULES, 2, every, CPU)
    for step in range(steps):
        blocks.follow(step, gramians(cosines, step, noise))
    return blocks


def test_it_starts_from_layers() -> None:
    assert AdaptiveBlocks(MODULES, 2, 5, CPU).names == LAYERS
    assert [layer_of(name) for name in MODULES[:4]] == ["decoder.layers.0"] * 3 + ["decoder.layers.1"]


def test_a_layer_splits_where_a_part_of_it_is_in_conflict() -> None:
    blocks = after(lambda name: -0.6 if name == "decoder.layers.1.attention" else 0.6)
    assert blocks.names == [
        "decoder.layers.0", *MODULES[3:6], "embedding", EXCLUDED, "head",
    ]  # fmt: skip


def test_a_layer_that_is_in_conflict_as_a_whole_stays_together() -> None:
    blocks = after(lambda name: -0.6 if ".layers.1." in name else 0.6)
    assert "decoder.layers.1" in blocks.names


def test_neighbours_without_conflict_merge() -> None:
    blocks = after(lambda name: 0.6)
    assert blocks.names == ["decoder.layers.0.attention..embedding", EXCLUDED, "head"], (
        "never with what is excluded"
    )
    for step in range(20, 40):
        blocks.follow(step, gramians(lambda name: -0.6 if name == "embedding" else 0.6, step))
    assert blocks.names == [*LAYERS[:3], EXCLUDED, "head"], "and come apart again"


def test_noise_is_no_conflict() -> None:
    """Cosines around zero: less than one pair in ten is more than two standard errors below."""
    found = 0
    for trial in range(40):
        statistics = CosineStatistics(len(MODULES), 2, CPU)
        for step in range(20):
            statistics.add(gramians(lambda name: 0.0, 1000 * trial + step, noise=0.3))
        found += int(statistics.in_conflict()[:, 0, 1].sum())
    assert found < 0.1 * 40 * len(MODULES)


def test_one_step_is_no_statistic() -> None:
    statistics = CosineStatistics(len(MODULES), 2, CPU)
    statistics.add(gramians(lambda name: -0.9, 0))
    assert not statistics.in_conflict().any()


def test_absent_objectives_are_not_counted() -> None:
    statistics = CosineStatistics(1, 2, CPU)
    for _ in range(5):
        statistics.add(torch.tensor([[[1.0, -0.9], [-0.9, 1.0]]], dtype=torch.float64))
        statistics.add(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64))
    assert float(statistics.sums[0, 0, 0, 1]) == 5
    assert bool(statistics.in_conflict()[0, 0, 1])


def test_decisions_come_at_their_steps_only() -> None:
    blocks = AdaptiveBlocks(MODULES, 2, 10, CPU)
    changed = [step for step in range(30) if blocks.follow(step, gramians(lambda name: 0.6, step))]
    assert changed == [9]


def test_it_resumes() -> None:
    def cosine(name: str) -> float:
        return -0.6 if name.endswith("mlp") else 0.5

    whole = after(cosine, steps=33, every=15)
    half = after(cosine, steps=22, every=15)
    rest = AdaptiveBlocks(MODULES, 2, 15, CPU)
    rest.load_state_dict(half.state_dict())
    for step in range(22, 33):
        rest.follow(step, gramians(cosine, step))
    assert rest.groups == whole.groups
    assert torch.equal(rest.state_dict()["parts"], whole.state_dict()["parts"])
    with pytest.raises(ValueError, match="another model"):
        AdaptiveBlocks(MODULES[:-1], 2, 15, CPU).load_state_dict(half.state_dict())


def test_weights_are_those_of_the_groups() -> None:
    solver = WeightSolver(MooConfig("mgda", block="auto", auto_every=2), make_method("mgda"), None)
    solver.place(MODULES, 2, CPU)
    seen = gramians(lambda name: -0.3, 0) * torch.linspace(1, 3, len(MODULES)).double()[:, None, None]
    weights = solver(seen, torch.ones(2), None, 0)
    first = make_method("mgda")(seen[:3].sum(0)[None])
    assert torch.equal(weights[:3], first.expand(3, 2))
    assert torch.equal(weights[7], torch.full((2,), 0.5, dtype=torch.float64)), "excluded: the plain mean"


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (99, 1.0)])
def test_strength_goes_from_the_mean_to_the_method(step: int, share: float) -> None:
    solver = WeightSolver(MooConfig("mgda", strength=(0.0, 1.0, 10)), make_method("mgda"), None)
    solver.place(["a"], 2, CPU)
    seen = torch.tensor([[[4.0, -1.0], [-1.0, 1.0]]], dtype=torch.float64)
    full = make_method("mgda")(seen)
    expected = 0.5 + share * (full - 0.5)
    assert torch.allclose(solver(seen, torch.ones(2), None, step), expected, rtol=1e-12)


def test_a_strength_outside_of_its_range_is_refused() -> None:
    with pytest.raises(MooError, match="--moo-strength"):
        MooConfig(strength=(0.0, 1.5, 10))
