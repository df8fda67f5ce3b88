"""The solve between Gramians and weights: preference, rescaling, excluded parameters."""

from __future__ import annotations

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
