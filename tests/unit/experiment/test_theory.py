"""docs/theory.md, statement by statement."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_moo.moo import make_method, min_norm_weights

SPLIT = (3, 4, 6)  # parameters of the blocks


def _rows(k: int, cases: int = 12) -> torch.Tensor:
    """Random Jacobians ``[cases, k, n]``."""
    generator = torch.Generator().manual_seed(k)
    return torch.randn(cases, k, sum(SPLIT), generator=generator, dtype=torch.float64)


def _direction(name: str, rows: torch.Tensor, sizes: tuple[int, ...], **options: Any) -> torch.Tensor:
    """``d [cases, n]`` of rows ``[cases, k, n]``, with one set of weights per block."""
    parts = rows.split(sizes, dim=-1)
    gramians = torch.cat([part @ part.mT for part in parts])
    tokens = torch.tensor([3.0, 1.0, 2.0, 5.0])[: rows.shape[1]] if name == "token" else None
    names = [f"{block}" for block in range(len(gramians))]
    weights = make_method(name, **options)(gramians, tokens=tokens, step=0, block=names).split(len(rows))
    return torch.cat(
        [torch.einsum("sk,skn->sn", w, part) for w, part in zip(weights, parts, strict=True)], dim=-1
    )


def _serves(rows: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """``<g_k, d>``, ``[cases, k]``."""
    return torch.einsum("skn,sn->sk", rows, d)


WHOLE = (sum(SPLIT),)
LINEAR: list[tuple[str, dict[str, Any]]] = [
    ("mean", {}), ("sum", {}), ("token", {}), ("fixed", {"weights": [0.1, 0.2, 0.7]})
]  # fmt: skip


@pytest.mark.parametrize(("name", "options"), LINEAR)
def test_1_linear_weights_do_not_see_blocks(name: str, options: dict[str, Any]) -> None:
    rows = _rows(3)
    torch.testing.assert_close(
        _direction(name, rows, SPLIT, **options), _direction(name, rows, WHOLE, **options)
    )
    assert not torch.allclose(_direction("cagrad", rows, SPLIT), _direction("cagrad", rows, WHOLE))


@pytest.mark.parametrize("k", [2, 3, 4])
def test_2_and_3_mgda(k: int) -> None:
    rows = _rows(k)
    squares = []
    for sizes in (WHOLE, (7, 6), SPLIT):  # each refines the one before
        d = _direction("mgda", rows, sizes)
        squares.append(d.square().sum(1))
        assert (_serves(rows, d) >= squares[-1][:, None] - 1e-9).all()
    assert (squares[0] >= squares[1] - 1e-9).all() and (squares[1] >= squares[2] - 1e-9).all()
    assert (squares[0] > squares[2] + 1e-3).all()


def test_4_the_counterexample() -> None:
    rows = torch.tensor([[[1.0, 3.0], [-3.0, -1.0]]], dtype=torch.float64)
    torch.testing.assert_close(_direction("mgda", rows, (1, 1)), torch.zeros(1, 2, dtype=torch.float64))
    d = _direction("mgda", rows, (2,))
    torch.testing.assert_close(d, torch.tensor([[-1.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(_serves(rows, d), torch.tensor([[2.0, 2.0]], dtype=torch.float64))


def test_4_pareto_stationary_points_are_block_stationary() -> None:
    rows = _rows(3)
    rows[:, 2] = -(0.3 * rows[:, 0] + 0.5 * rows[:, 1]) / 0.2  # 0.3, 0.5, 0.2 give 0
    for part in rows.split(SPLIT, dim=-1):
        gram = part @ part.mT
        w = min_norm_weights(gram)
        left = torch.einsum("si,sij,sj->s", w, gram, w)
        assert (left < 1e-12 * gram.diagonal(dim1=1, dim2=2).amax(1)).all()


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("k", [2, 4])
def test_5_cagrad(k: int, c: float) -> None:
    rows = _rows(k)
    mean = rows.mean(1)
    for sizes in (WHOLE, SPLIT):
        d = _direction("cagrad", rows, sizes, c=c)
        torch.testing.assert_close((d - mean).norm(dim=1), c * mean.norm(dim=1), rtol=1e-6, atol=0.0)
        assert ((mean * d).sum(1) >= (1 - c) * mean.square().sum(1) - 1e-9).all()


def test_6_cagrad_can_raise_a_language() -> None:
    rows = torch.tensor([[10.0, 0.0], [10.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
    d = _direction("cagrad", rows[None], (2,), c=0.5)[0]
    assert float(rows[2] @ d) < -1.0
    mean = rows.mean(0)  # no point of the ball serves the third: brute force
    angles = torch.linspace(0, 2 * torch.pi, 10_000, dtype=torch.float64)
    ball = mean + 0.5 * mean.norm() * torch.stack([angles.cos(), angles.sin()], 1)
    best = (ball @ rows.T).min(1).values.max()
    assert float((rows @ d).min()) == pytest.approx(float(best), abs=1e-4) and best < 0


@pytest.mark.parametrize("k", [2, 4])
def test_7_the_model_is_the_best_block_for_the_worst_language(k: int) -> None:
    rows = _rows(k)
    whole, blocks = _direction("cagrad", rows, WHOLE), _direction("cagrad", rows, SPLIT)
    assert (_serves(rows, whole).amin(1) >= _serves(rows, blocks).amin(1) - 1e-7).all()
    for part, mine, models in zip(
        rows.split(SPLIT, -1), blocks.split(SPLIT, -1), whole.split(SPLIT, -1), strict=True
    ):
        # Brought into the block's ball, the model's direction serves the block's worst language no better.
        mean = part.mean(1)
        away = models - mean
        shrink = (0.5 * mean.norm(dim=1) / away.norm(dim=1)).clamp(max=1.0)
        inside = mean + away * shrink[:, None]
        assert (_serves(part, mine).amin(1) >= _serves(part, inside).amin(1) - 1e-7).all()


@pytest.mark.parametrize("name", ["upgrad", "dualproj"])
@pytest.mark.parametrize("k", [2, 4])
def test_8_non_conflicting_at_every_partition(k: int, name: str) -> None:
    rows = _rows(k)
    for sizes in (WHOLE, SPLIT):
        assert (_serves(rows, _direction(name, rows, sizes)) >= -1e-7).all()
    d = _direction(name, rows, SPLIT)
    for part, piece in zip(rows.split(SPLIT, -1), d.split(SPLIT, -1), strict=True):
        assert (_serves(part, piece) >= -1e-7).all()


def test_8_the_model_may_sacrifice_a_block() -> None:
    rows = _rows(3, 20)
    pieces = _direction("upgrad", rows, WHOLE).split(SPLIT, -1)
    hurt = [
        (_serves(part, piece) < -1e-3).any(1)
        for part, piece in zip(rows.split(SPLIT, -1), pieces, strict=True)
    ]
    assert int(torch.stack(hurt).any(0).sum()) > 10


def test_9_pcgrad_of_two() -> None:
    rows = _rows(2)
    for sizes in (WHOLE, SPLIT):
        assert (_serves(rows, _direction("pcgrad", rows, sizes)) >= -1e-9).all()


def test_9_pcgrad_of_three_can_conflict() -> None:
    rows = torch.from_numpy(np.random.default_rng(0).normal(size=(200, 3, 2)))
    assert float(_serves(rows, _direction("pcgrad", rows, (2,))).min()) < -0.01


def test_11_an_absent_language_does_not_freeze_a_block() -> None:
    rows = _rows(3, 1)
    rows[:, 2, :3] = 0.0  # the third does not touch the first block
    part = rows[:, :, :3]
    d = _direction("mgda", rows, SPLIT)[0, :3]
    two = min_norm_weights(part[:, :2] @ part[:, :2].mT)[0]
    torch.testing.assert_close(d, two @ part[0, :2])
    assert float(d.norm()) > 0.1
    # Left in, its zero row is the hull's nearest point: all weight on it gives 0.
    assert float((torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64) @ part[0]).norm()) == 0.0


def test_12_neither_condition_implies_the_other() -> None:
    # One shared parameter that is stationary, one expert that the first language alone touches.
    rows = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    on_the_second = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float((on_the_second @ rows[0]).norm()) == 0.0  # Pareto stationary
    assert float(_direction("mgda", rows, (1, 1)).norm()) == pytest.approx(1.0)  # the expert moves on
