"""Blocks that follow conflict: what splits, what merges, and that noise alone does neither, however many languages."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from megatron_moo.buckets.adaptive import ENOUGH, AdaptiveBlocks, Moments, cosines, layer_of, student_quantile
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


def random_rows(k: int, generator: torch.Generator, dims: int = 50) -> torch.Tensor:
    return torch.randn(len(MODULES), k, dims, generator=generator, dtype=torch.float64)


def structured(sign: Callable[[str], torch.Tensor], k: int, signal: float) -> Callable[[int], torch.Tensor]:
    """Gramians of rows with a common direction per module, times ``sign(module)`` ``[K]``, and noise.

    Mean cosines are about +-``signal``, and what a step shows of them spreads by 0.14.
    """
    generator = torch.Generator().manual_seed(k)
    amount = (signal / (1 - signal)) ** 0.5
    common = torch.nn.functional.normalize(random_rows(1, generator), dim=-1) * 50**0.5 * amount
    signs = torch.stack([sign(name) for name in MODULES]).double()[:, :, None]

    def of_step(step: int) -> torch.Tensor:
        rows = signs * common + random_rows(k, torch.Generator().manual_seed(1000 + step))
        return rows @ rows.mT

    return of_step


def followed(of_step: Callable[[int], torch.Tensor], k: int, steps: int = 20) -> AdaptiveBlocks:
    blocks = AdaptiveBlocks(MODULES, k, steps, CPU)
    for step in range(steps):
        blocks.follow(step, of_step(step))
    return blocks


@pytest.mark.parametrize("k", [2, 6, 20])
def test_noise_moves_nothing(k: int) -> None:
    """Independent random rows, one decision per run: at most one run in ten changes anything."""
    generator = torch.Generator().manual_seed(k)
    changed = 0
    for _ in range(40):
        blocks = AdaptiveBlocks(MODULES, k, 20, CPU)
        for step in range(20):
            rows = random_rows(k, generator)
            changed += int(blocks.follow(step, rows @ rows.mT))
    assert changed <= 4


@pytest.mark.parametrize("k", [6, 20])
def test_a_conflict_among_many_languages_is_found(k: int) -> None:
    """One language in two is against the others in one module; the rest of the model agrees."""

    def sign(name: str) -> torch.Tensor:
        return 1 - 2 * (torch.arange(k) % 2) * int(name == "decoder.layers.1.attention")

    blocks = followed(structured(sign, k, 0.3), k)
    assert blocks.names == [LAYERS[0], *MODULES[3:6], *LAYERS[2:]]


@pytest.mark.parametrize("k", [6, 20])
def test_one_language_against_the_others_is_found(k: int) -> None:
    def sign(name: str) -> torch.Tensor:
        return 1 - 2 * (torch.arange(k) == 3).long() * int(name == "decoder.layers.1.attention")

    blocks = followed(structured(sign, k, 0.3), k)
    assert blocks.names == [LAYERS[0], *MODULES[3:6], *LAYERS[2:]]


@pytest.mark.parametrize("k", [6, 20])
def test_many_languages_that_agree_merge(k: int) -> None:
    blocks = followed(structured(lambda name: torch.ones(k), k, 0.4), k)
    assert blocks.names == ["decoder.layers.0.attention..embedding", EXCLUDED, "head"]


@pytest.mark.parametrize("k", [6, 20])
def test_a_group_that_is_in_conflict_throughout_stays(k: int) -> None:
    """Its parts are in conflict, and no more so than the whole."""
    blocks = followed(structured(lambda name: 1 - 2 * (torch.arange(k) % 2), k, 0.3), k)
    assert blocks.names == LAYERS


def test_quantiles_are_those_of_students_t() -> None:
    """Against what ``scipy.stats.t.isf`` 1.18 printed."""
    known = {
        (1, 0.025): 12.7062047,
        (2, 1e-4): 70.7000711,
        (7, 1e-5): 10.1026843,
        (19, 1e-7): 7.90511263,
        (50, 0.3): 0.527760453,
        (999, 1e-7): 5.23603539,
    }
    for (dof, tail), value in known.items():
        assert student_quantile(dof, tail) == pytest.approx(value, rel=1e-6)
    assert student_quantile(10**6, 1e-6) == pytest.approx(4.753424, rel=0.01), (
        "that of the normal distribution"
    )


def test_one_step_is_no_statistic() -> None:
    moments = Moments(len(MODULES), 2, CPU)
    moments.add(*cosines(gramians(lambda name: -0.9, 0)))
    assert not moments.below(0.4).any() and not moments.above(0.4).any()


def test_absent_objectives_are_not_counted() -> None:
    moments = Moments(1, 2, CPU)
    for _ in range(5):
        moments.add(*cosines(torch.tensor([[[1.0, -0.9], [-0.9, 1.0]]], dtype=torch.float64)))
        moments.add(*cosines(torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], dtype=torch.float64)))
    assert float(moments.sums[0, 0, 0, 1]) == 5
    assert bool(moments.below(1e-6)[0, 0, 1])


def test_a_difference_of_rounding_is_none() -> None:
    """A group of which one module alone has gradients is that module, up to the order of sums."""
    moments = Moments(1, 1, CPU)
    for _ in range(20):
        moments.add(torch.full((1, 1, 1), -1e-9, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.bool))
    assert not moments.below(0.01).any()


def test_decisions_come_at_their_steps_only() -> None:
    blocks = AdaptiveBlocks(MODULES, 2, 10, CPU)
    changed = [step for step in range(30) if blocks.follow(step, gramians(lambda name: 0.6, step))]
    assert changed == [9]


@pytest.mark.parametrize(
    ("every", "solved", "decisions"),
    [
        (50, 10, [70, 150, 230]),  # the first period has five solved steps only
        (50, 50, [350]),
        (10, 3, [21, 45, 69]),
        (4, 2, [6, 14, 22]),  # (step + 1) % 4 is never 0 at a solved step
    ],
)
def test_decisions_come_where_most_steps_are_not_solved(
    every: int, solved: int, decisions: list[int]
) -> None:
    """``--moo-every``: the solver is called at every ``solved``-th step; each decision undoes the last one."""
    config = MooConfig("mgda", block="auto", auto_every=every, every=solved)
    solver = WeightSolver(config, make_method("mgda"), None)
    solver.place(MODULES, 2, CPU)
    found: list[int] = []
    for step in range(0, decisions[-1] + solved, solved):
        sign = -1.0 if len(found) % 2 else 1.0
        seen = gramians(lambda name, sign=sign: 0.6 * sign if name == "embedding" else 0.6, step, 0.05)
        solver(seen, torch.ones(2), None, step)
        if solver.changed:
            found.append(step)
    assert found == decisions
    assert solver.auto is not None and solver.auto.state_dict()["counted"] == 0


def test_a_run_that_starts_late_makes_up_for_nothing() -> None:
    blocks = AdaptiveBlocks(MODULES, 2, 10, CPU)
    changed = [step for step in range(25, 45) if blocks.follow(step, gramians(lambda name: 0.6, step))]
    assert changed == [24 + ENOUGH], "five steps to the thirtieth are not enough"


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
    one, other = rest.state_dict(), whole.state_dict()
    for key in ("parts", "differences"):
        assert torch.equal(one[key], other[key])
    assert (one["counted"], one["decided"]) == (other["counted"], other["decided"]) == (3, 2)
    with pytest.raises(ValueError, match="another model"):
        AdaptiveBlocks(MODULES[:-1], 2, 15, CPU).load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match="counted 2 objectives, this run has 3"):
        AdaptiveBlocks(MODULES, 3, 15, CPU).load_state_dict(half.state_dict())


def test_a_state_of_an_earlier_version_keeps_its_groups() -> None:
    old = after(lambda name: 0.6, steps=23).state_dict()
    old = {"groups": old["groups"], "parts": old["parts"], "wholes": old["parts"][:, :3]}
    blocks = AdaptiveBlocks(MODULES, 2, 20, CPU)
    blocks.load_state_dict(old)
    assert blocks.names == ["decoder.layers.0.attention..embedding", EXCLUDED, "head"]
    for step in range(23, 40):
        blocks.follow(step, gramians(lambda name: -0.6 if name == "embedding" else 0.6, step))
    assert blocks.names == LAYERS


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
