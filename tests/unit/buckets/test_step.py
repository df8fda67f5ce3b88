"""The solve between Gramians and weights: preference, rescaling, excluded parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_moo.buckets.blocks import EXCLUDED
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.weights import WeightSolver
from megatron_moo.moo import make_method


def gramians(blocks: int, k: int) -> torch.Tensor:
    rows = torch.randn(blocks, k, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return rows @ rows.transpose(1, 2)


def solve(config: MooConfig, names: list[str], preference: torch.Tensor | None = None) -> tuple:
    solver = WeightSolver(config, make_method(config.method), preference)
    solver.place(names, 3, torch.device("cpu"))
    g = gramians(len(names), 3)
    return g, solver(g, torch.ones(3, dtype=torch.float64), None, 0)


@pytest.mark.parametrize("method", ["mgda", "pcgrad", "sum"])
def test_rescaling_gives_the_norm_of_the_mean(method: str) -> None:
    g, w = solve(MooConfig(method, rescale="mean"), ["x", "y"])
    u = torch.full((3,), 1 / 3, dtype=torch.float64)
    norm = torch.einsum("bi,bij,bj->b", w, g, w).sqrt()
    mean = torch.einsum("i,bij,j->b", u, g, u).sqrt()
    torch.testing.assert_close(norm, mean)
    _, plain = solve(MooConfig(method), ["x", "y"])
    torch.testing.assert_close(w / w.norm(dim=1, keepdim=True), plain / plain.norm(dim=1, keepdim=True))


def test_excluded_parameters_stay_at_the_mean() -> None:
    preference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    for u, given in ((torch.full((3,), 1 / 3, dtype=torch.float64), None), (preference, preference)):
        _, w = solve(MooConfig("mgda"), ["x", EXCLUDED], given)
        torch.testing.assert_close(w[1], u)
        assert (w[0] - u).abs().max() > 1e-2


def test_preference_reaches_the_method() -> None:
    preference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    _, w = solve(MooConfig("mean"), ["x"], preference)
    torch.testing.assert_close(w[0], preference)


def lasting_of(method: str, g: torch.Tensor, **kw: Any) -> torch.Tensor:
    """Weights ``[B, K]`` that serve until the next solve, of blocks ``layers.0.mlp``, ``layers.0.norms``, …"""
    preference = kw.pop("preference", None)
    options = kw.pop("options", {})
    config = MooConfig(method, options, every=4, **kw)
    solver = WeightSolver(config, make_method(method, **options), preference)
    names = [f"layers.0.{part}" for part in ("mlp", "norms", "attention")][: len(g)]
    solver.place(names, g.shape[-1], torch.device("cpu"))
    tokens = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    weights = solver(g, tokens, None, 0)
    there = g.diagonal(dim1=-2, dim2=-1) > 0
    assert solver.lasting is not None and torch.equal(solver.lasting[there], weights[there])
    return solver.lasting


def test_weights_that_last_give_a_row_that_was_not_there_the_plain_means() -> None:
    rows = torch.randn(2, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    rows[0, 2] = 0.0
    g = rows @ rows.mT
    for method in ("mgda", "cagrad", "pcgrad", "upgrad", "ema:mgda"):
        assert lasting_of(method, g)[0, 2] == 1 / 3, method
    preference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    assert lasting_of("mgda", g, preference=preference)[0, 2] == 0.5
    assert lasting_of("mgda", g, strength=(0.5, 0.5, 1))[0, 2] == 1 / 3
    assert lasting_of("mgda", g, rescale="mean")[0, 2] == 1 / 3, "the mean's norm is that of u already"
    # Methods that do not ask who is there say what they would have said.
    assert lasting_of("token", g)[0, 2] == 5 / 8
    assert lasting_of("sum", g)[0, 2] == 1
    assert lasting_of("fixed", g, options={"weights": (0.5, 0.1, 0.4)})[0, 2] == pytest.approx(0.4)
    assert lasting_of("mean", g, preference=preference)[0, 2] == 0.5
    drawn = lasting_of("random", g)
    torch.testing.assert_close(drawn.sum(-1), torch.ones(2, dtype=torch.float64))
    assert torch.equal(
        lasting_of("mgda", torch.zeros_like(g)), torch.full((2, 3), 1 / 3, dtype=torch.float64)
    )
    # A module without a row has its group's weight, also where that is 0 because the method says so.
    together = lasting_of("mgda", g, block="auto")
    assert torch.equal(together[0], together[1]) and float(together[0, 2]) != 1 / 3
