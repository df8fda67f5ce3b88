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


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize(("name", "options"), LINEAR)
def test_1_linear_weights_do_not_see_blocks(name: str, options: dict[str, Any], absent: bool) -> None:
    rows = _rows(3)
    if absent:  # 11: it holds there too
        rows[:, 2, :3] = 0.0
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


def test_5_an_undefined_block_stays_at_the_mean() -> None:
    # Two rows of the first block cancel, and every point of its ball on the third's line serves them equally: by 0.
    rows = torch.tensor([[[1.0, 0.0, 1.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]], dtype=torch.float64)
    mean, d = rows.mean(1), _direction("cagrad", rows, (2, 1), c=0.5)
    torch.testing.assert_close(d, torch.tensor([[0.0, 1 / 3, 1.5]], dtype=torch.float64))
    assert float((d - mean).norm()) < 0.5 * float(mean.norm()) - 0.02


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


def _small_language_model(vocabulary: int) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Embedding(vocabulary, 8),
        torch.nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True),
        torch.nn.LayerNorm(8),
        torch.nn.Linear(8, vocabulary),
    ).double()


def test_10_every_language_touches_every_dense_parameter() -> None:
    """So that dependence cuts nothing apart; only rows of the embedding are used by some languages alone (11)."""
    model = _small_language_model(12)
    gradients = []
    for first in (0, 4, 8):  # three languages of four letters each
        ids = first + torch.randint(4, (6, 10), generator=torch.Generator().manual_seed(first))
        loss = torch.nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        gradients.append(
            dict(
                zip(
                    dict(model.named_parameters()),
                    torch.autograd.grad(loss, [*model.parameters()]),
                    strict=True,
                )
            )
        )
    for name in gradients[0]:
        for gradient in gradients:
            part = gradient[name]
            assert float(part.norm()) > 1e-6, name
            if name != "0.weight" and part.dim() == 2:  # single elements of a dense matrix too
                assert bool((part != 0).all()), name
    used = torch.stack([gradient["0.weight"].norm(dim=1) > 0 for gradient in gradients])
    assert used.sum(0).tolist() == [1] * 12
    # One part is the whole model, whose refined condition is the classical one; layers ask for less (4).
    rows = torch.stack([torch.cat([part.flatten() for part in gradient.values()]) for gradient in gradients])[
        None
    ]
    sizes = tuple(part.numel() for part in gradients[0].values())
    whole = _direction("mgda", rows, (rows.shape[-1],)).norm()
    assert float(_direction("mgda", rows, sizes).norm()) < float(whole)


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


def test_11_what_fails_where_a_language_is_absent() -> None:
    rows = torch.tensor([[[1.0, 5.0], [-1.0, 0.0]]], dtype=torch.float64)
    d, whole = _direction("mgda", rows, (1, 1)), _direction("mgda", rows, (2,))
    torch.testing.assert_close(d, torch.tensor([[0.0, 5.0]], dtype=torch.float64))
    assert float(d.square().sum()) == pytest.approx(25.0)
    assert float(_serves(rows, d)[0, 1]) == pytest.approx(0.0, abs=1e-9)  # against 2
    assert float(whole.square().sum()) == pytest.approx(25 / 29)  # against 3
    d, mean = _direction("cagrad", rows, (1, 1), c=0.5), rows.mean(1)
    torch.testing.assert_close(d, torch.tensor([[0.0, 7.5]], dtype=torch.float64))
    assert float((d - mean).norm()) == pytest.approx(5.0)  # against 5
    assert 0.5 * float(mean.norm()) == pytest.approx(1.25)
    rows = torch.tensor([[[1.0, 5.0, 0.0], [1.0, 0.0, 5.0]]], dtype=torch.float64)
    blocks, whole = _direction("cagrad", rows, (1, 1, 1), c=0.5), _direction("cagrad", rows, (3,), c=0.5)
    assert float(_serves(rows, blocks).min()) == pytest.approx(39.0)  # against 7
    assert float(_serves(rows, whole).min()) <= 1.5 * float(rows.mean(1).square().sum()) + 1e-9 < 20.26


@pytest.mark.parametrize("k", [2, 3, 4])
def test_11_what_is_left_where_a_language_is_absent(k: int) -> None:
    rows = _rows(k)
    rows[:, -1, :3] = 0.0  # the last does not touch the first block
    rows[:, 0, 7:] = 0.0  # nor the first the third
    parts = rows.split(SPLIT, dim=-1)
    d = _direction("mgda", rows, SPLIT)
    touched = torch.stack([(part != 0).any(-1) for part in parts], -1)  # [cases, k, blocks]
    squares = torch.stack([piece.square().sum(1) for piece in d.split(SPLIT, -1)], -1)
    assert (_serves(rows, d) >= (touched * squares[:, None]).sum(-1) - 1e-9).all()
    d, mean = _direction("cagrad", rows, SPLIT, c=0.5), rows.mean(1)
    own = torch.cat(
        [
            part.sum(1) / there.sum(1, keepdim=True)
            for part, there in zip(parts, touched.unbind(-1), strict=True)
        ],
        -1,
    )
    assert ((d - own).norm(dim=1) <= 0.5 * own.norm(dim=1) + 1e-9).all()
    assert ((mean * d).sum(1) >= 0.5 * mean.square().sum(1) - 1e-9).all()
    for name in ("upgrad", "dualproj", *(["pcgrad"] if k == 2 else [])):
        assert (_serves(rows, _direction(name, rows, SPLIT)) >= -1e-7).all()


def test_12_neither_condition_implies_the_other() -> None:
    # One shared parameter that is stationary, one expert that the first language alone touches.
    rows = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64)
    on_the_second = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert float((on_the_second @ rows[0]).norm()) == 0.0  # Pareto stationary
    assert float(_direction("mgda", rows, (1, 1)).norm()) == pytest.approx(1.0)  # the expert moves on


def test_12_the_other_direction() -> None:
    """The coordinates of 4 beside an expert that the first language alone uses and that is at rest."""
    rows = torch.tensor([[[1.0, 3.0, 0.0], [-3.0, -1.0, 0.0]]], dtype=torch.float64)
    assert float(_direction("mgda", rows, (1, 1, 1)).norm()) == pytest.approx(0.0, abs=1e-9)  # every block
    d = _direction("mgda", rows, (3,))
    assert float(_serves(rows, d).min()) == pytest.approx(2.0)  # the model: a step serves both
