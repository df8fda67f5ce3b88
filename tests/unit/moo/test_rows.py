"""Absent and broken rows: never felt by the others."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.moo import METHODS, make_method

from .drawn import inputs, jacobians

PLAIN = ("mean", "token", "sum", "fixed", "random")


def with_row(fill: float, at: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """(Jacobians of 5 rows, the same with one more row of ``fill``, where the 5 are)."""
    J = jacobians(5)
    row = torch.full_like(J[:, :1], fill)
    return J, torch.cat([J[:, :at], row, J[:, at:]], 1), [i for i in range(6) if i != at]


def call(
    name: str, G: torch.Tensor, places: list[int], k: int
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Weights with inputs and, where one is used, an order that agree between 5 and 6 rows."""
    given = {key: value[places] for key, value in inputs(name, 6).items()}
    if "order" in METHODS[name].takes:
        order = [[j for j in range(6) if j != i] for i in range(6)]
        place = {p: n for n, p in enumerate(places)}
        given["order"] = torch.tensor([[place[j] for j in order[i] if j in place] for i in places])
    method = make_method(name)
    return method(G, **given), method.flags


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 3, 5])
@pytest.mark.parametrize("name", METHODS)
def test_the_result_is_the_one_without_the_row(name: str, at: int, fill: float) -> None:
    J, more, places = with_row(fill, at)
    w, flags = call(name, more @ more.mT, list(range(6)), 6)
    assert (w[:, at] == 0).all()
    assert flags["absent"][:, at].all() and (flags["nonfinite"][:, at] == (fill != 0)).all()
    assert not flags["absent"][:, places].any() and not flags["all_bad"].any()
    if name in PLAIN:  # they do not renormalise: the others keep what they would have had
        full = torch.cat([more[:, :at], torch.ones_like(more[:, :1]), more[:, at + 1 :]], 1)
        kept, _ = call(name, full @ full.mT, list(range(6)), 6)
        assert torch.equal(w[:, places], kept[:, places])
        return
    alone, _ = call(name, J @ J.mT, places, 5)
    d, other = torch.einsum("bk,bkn->bn", w[:, places], J), torch.einsum("bk,bkn->bn", alone, J)
    size = torch.maximum(torch.linalg.matrix_norm(J), other.norm(dim=-1))
    assert ((d - other).norm(dim=-1) <= 1e-7 * size).all()


@pytest.mark.parametrize("name", METHODS)
def test_rows_of_other_blocks_are_not_felt(name: str) -> None:
    G = jacobians(4)[:6] @ jacobians(4)[:6].mT
    broken = G.clone()
    broken[2] = float("nan")
    broken[4, 1, :] = broken[4, :, 1] = float("inf")
    w, clean = (make_method(name)(x, **inputs(name, 4)) for x in (broken, G))
    assert torch.equal(w[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])
    assert w.isfinite().all()


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_all_rows_bad(name: str, value: float) -> None:
    method = make_method(name)
    w = method(torch.full((2, 3, 3), value, dtype=torch.float64), **inputs(name, 3))
    assert (w == 0).all() and method.flags["all_bad"].all()


def test_a_broken_product_drops_both_rows() -> None:
    G = torch.eye(3, dtype=torch.float64)
    G[0, 1] = float("nan")
    method = make_method("mgda")
    assert method(G).tolist() == [0.0, 0.0, 1.0]
    assert method.flags["nonfinite"].tolist() == [True, True, False]


def test_named_values_of_0_over_0() -> None:
    """Two opposed rows: config and imtl_g have no direction; cagrad, where they cancel beside a third, takes
    g_0."""
    J = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    for name in ("config", "imtl_g"):
        method = make_method(name)
        assert (method(J @ J.T) == 0).all() and method.flags["undefined"].all(), name
    J = torch.tensor([[1.0, 0.0], [-1.2, 0.0], [0.0, 5.0]], dtype=torch.float64)
    method = make_method("cagrad", c=0.5)
    w = method(J @ J.T)
    assert method.flags["undefined"] and torch.allclose(w, torch.full((3,), 1 / 3).double())


@pytest.mark.parametrize("name", METHODS)
def test_one_row(name: str) -> None:
    w = make_method(name)(torch.tensor([[4.0]], dtype=torch.float64), **inputs(name, 1))
    expected = {"cagrad": 1.5, "ema": 1.5, "nash_mtl": 0.5, "fairgrad": 0.5}.get(name, 1.0)
    assert w.item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_a_last_row_that_is_absent_leaves_the_drawn_order_alone(name: str) -> None:
    """Orders are drawn per pair (i, j), whatever K is: with the row and without it the others weigh the same."""
    generator = torch.Generator().manual_seed(0)
    J = torch.randn(40, 6, 9, dtype=torch.float64, generator=generator)
    J[:, 5] = 0.0
    given = {"step": 3, "block": [f"block {i}" for i in range(40)]}
    with_it = make_method(name)(J @ J.mT, **given)
    without = make_method(name)(J[:, :5] @ J[:, :5].mT, **given)
    torch.testing.assert_close(with_it[:, :5], without, rtol=1e-12, atol=0)
    assert not with_it[:, 5].any()
