"""Properties over 1,000 seeded Gramians per method."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_moo.moo import METHODS, make_method, min_norm_weights

from .drawn import GRAMIAN_METHODS, SIZES, combine, gramians, inputs, jacobians, norm


def relative(d: Tensor, other: Tensor, J: Tensor) -> Tensor:
    """|d - other| relative to ||J||_F or to d, whichever is larger (weights of some methods are not of order
    1)."""
    return (d - other).norm(dim=-1) / torch.maximum(norm(J), other.norm(dim=-1))


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", METHODS)
def test_finite(name: str, k: int) -> None:
    d, w = combine(name, jacobians(k))
    assert w.isfinite().all() and d.isfinite().all()


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.equivariant])
def test_permutation_equivariant(name: str, k: int) -> None:
    J = jacobians(k)
    perm = torch.randperm(k, generator=torch.Generator().manual_seed(k))
    given = inputs(name, k)
    w = make_method(name)(J @ J.mT, **given)
    moved = make_method(name)(
        (J @ J.mT)[:, perm][:, :, perm], **{key: value[perm] for key, value in given.items()}
    )
    d, other = torch.einsum("bk,bkn->bn", w, J), torch.einsum("bk,bkn->bn", moved, J[:, perm])
    assert trusted(name, J, relative(d, other, J)).max() <= 1e-6


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_permutation_equivariant_with_its_order(name: str, k: int) -> None:
    J = jacobians(k)
    generator = torch.Generator().manual_seed(k)
    order = torch.stack([(torch.randperm(k - 1, generator=generator) + i + 1) % k for i in range(k)])
    perm = torch.randperm(k, generator=generator)
    inverse = perm.argsort()
    w = make_method(name)(J @ J.mT, order=order)
    moved = make_method(name)((J @ J.mT)[:, perm][:, :, perm], order=inverse[order[perm]])
    d, other = torch.einsum("bk,bkn->bn", w, J), torch.einsum("bk,bkn->bn", moved, J[:, perm])
    assert relative(d, other, J).max() <= 1e-9


@pytest.mark.parametrize("a", [1e-15, 3e-5, 7e4, 1e15])
@pytest.mark.parametrize(
    "name", [name for name, spec in METHODS.items() if spec.scale in ("linear", "constant")]
)
def test_scaling(name: str, a: float) -> None:
    for k in SIZES:
        J = jacobians(k)
        d, _ = combine(name, J)
        other, _ = combine(name, a * J)
        factor = a if METHODS[name].scale == "linear" else 1.0
        # Dividing by the scale brings another rounding of G for each a: what test_oracles allows, twice.
        assert trusted(name, J, relative(other / factor, d, J)).max() <= 2e-6, k


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_scaling_of_fairgrad(alpha: float) -> None:
    for k in SIZES:
        J, a = jacobians(k), 1e3
        d, _ = combine("fairgrad", J, alpha=alpha)
        other, _ = combine("fairgrad", a * J, alpha=alpha)
        factor = a ** ((1 - alpha) / (1 + alpha))
        assert trusted("fairgrad", J, relative(other / factor, d, J), alpha=alpha).max() <= 1e-5, k


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("name", [name for name, spec in METHODS.items() if spec.non_conflicting])
def test_non_conflicting(name: str, k: int) -> None:
    J = jacobians(k)
    d, _ = combine(name, J)
    products = torch.einsum("bkn,bn->bk", J, d) / J.norm(dim=-1)
    assert (products >= -1e-7 * torch.maximum(norm(J), d.norm(dim=-1))[:, None]).all()


def test_mgda_serves_every_row_by_at_least_its_square() -> None:
    for k in SIZES:
        J = jacobians(k)
        d, w = combine("mgda", J)
        assert (w >= 0).all() and torch.allclose(w.sum(-1), torch.ones(()).double())
        gap = d.square().sum(-1) - torch.einsum("bkn,bn->bk", J, d).amin(-1)
        assert (gap <= 1e-9 * norm(J).square()).all(), k


@pytest.mark.parametrize("c", [0.0, 0.2, 0.5, 0.95])
def test_cagrad_is_on_the_sphere(c: float) -> None:
    for k in SIZES:
        J = jacobians(k)
        method = make_method("cagrad", c=c)
        d = torch.einsum("bk,bkn->bn", method(J @ J.mT), J)
        g0 = J.mean(1)
        on = ((d - g0).norm(dim=-1) - c * g0.norm(dim=-1)).abs() <= 1e-7 * norm(J)
        assert (on | method.flags["undefined"]).all(), k
        assert torch.allclose(d[method.flags["undefined"]], g0[method.flags["undefined"]], atol=1e-12)


def test_imtl_g_projects_equally() -> None:
    for k in SIZES:
        J = jacobians(k)
        d, w = combine("imtl_g", J)
        full = torch.linalg.svdvals(J / J.norm(dim=-1, keepdim=True))[:, -1] > 1e-4
        products = torch.einsum("bkn,bn->bk", J, d) / J.norm(dim=-1)
        spread = (products - products.mean(-1, keepdim=True)).abs().amax(-1)
        size = torch.maximum(norm(J), w.abs().amax(-1) * norm(J))
        assert full.any() and (spread <= 1e-9 * size)[full].all(), k
        assert torch.allclose(w.sum(-1)[full], torch.ones(()).double())


def test_config_has_equal_cosines_and_the_length_of_the_projections() -> None:
    for k in SIZES:
        J = jacobians(k)
        d, _ = combine("config", J)
        full = torch.linalg.svdvals(J / J.norm(dim=-1, keepdim=True))[:, -1] > 1e-4
        products = torch.einsum("bkn,bn->bk", J, d)
        cosines = products / J.norm(dim=-1) / d.norm(dim=-1, keepdim=True)
        assert ((cosines - cosines.mean(-1, keepdim=True)).abs() <= 1e-8)[full].all(), k
        assert torch.allclose(products.sum(-1)[full], d.square().sum(-1)[full], rtol=1e-6), k


def test_nothing_is_done_at_strong_stationarity() -> None:
    """A positive combination of the rows is 0: mgda, dualproj and upgrad stop there; nash and fairgrad say
    so."""
    for k in SIZES:
        J = jacobians(k)[::6].clone()
        weights = torch.linspace(0.5, 1.5, k - 1, dtype=torch.float64)
        J[:, -1] = -torch.einsum("k,bkn->bn", weights, J[:, :-1])
        for name in ("mgda", "dualproj", "upgrad"):
            assert (combine(name, J)[0].norm(dim=-1) <= 1e-6 * norm(J)).all(), (name, k)
        for name in ("nash_mtl", "fairgrad"):
            method = make_method(name)
            assert method(J @ J.mT).isfinite().all() and method.flags["capped"].all(), (name, k)


def test_something_is_done_anywhere_else() -> None:
    """Rows that all gain, or lose nothing, along one direction, some of them gain: no positive combination
    is 0."""
    for k in SIZES:
        J = jacobians(k)[::6].clone()
        J[:, :, 0] = 0.0
        J[:, 0, 0] = J[:, 0].norm(dim=-1)
        for name in ("upgrad", "cagrad", "aligned_mtl"):
            assert (combine(name, J)[0].norm(dim=-1) >= 1e-3 * norm(J)).all(), (name, k)


def test_blocks_and_the_whole_model() -> None:
    """One block is classical MOO; per block mgda's squares add up to no more than the whole model's."""
    for k in SIZES:
        parts = jacobians(k)[: 8 * (SIZES[k] // 8)].reshape(-1, 8, k, k + 6)  # models of 8 blocks
        G = parts @ parts.mT
        model = G.sum(1)
        together = torch.einsum("bi,bij,bj->b", min_norm_weights(model), model, min_norm_weights(model))
        w = min_norm_weights(G)
        apart = torch.einsum("bpi,bpij,bpj->b", w, G, w)
        assert (apart <= together + 1e-9 * model.diagonal(dim1=-2, dim2=-1).sum(-1)).all()
        for name in GRAMIAN_METHODS:
            kw = {"block": ["model"]} if METHODS[name].random else {}
            one = make_method(name)(G[:1].sum(1), **kw)
            whole = torch.cat(list(parts[0]), -1)[None]
            classical = make_method(name)(whole @ whole.mT, **kw)
            difference = torch.einsum("bk,bkn->bn", one - classical, whole).norm()
            size = max(whole.norm(), torch.einsum("bk,bkn->bn", classical, whole).norm())
            assert difference <= 1e-6 * size, (name, k)


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_its_members(name: str) -> None:
    G = gramians(4)[:12].reshape(3, 4, 4, 4)
    names = [f"layer.{i}" for i in range(12)]
    together = make_method(name)(G, block=names, step=3, **inputs(name, 4))
    for i in range(12):
        alone = make_method(name)(G.flatten(0, 1)[i], block=[names[i]], step=3, **inputs(name, 4))
        J = jacobians(4)[i]
        assert ((together.flatten(0, 1)[i] - alone) @ J).norm() <= 1e-7 * max(J.norm(), (alone @ J).norm())


@pytest.mark.parametrize("name", ["normalized:mgda", "normalized:cagrad"])
def test_normalized_is_the_method_on_unit_rows(name: str) -> None:
    for k in SIZES:
        J = jacobians(k)
        U = J / J.norm(dim=-1, keepdim=True)
        d, _ = combine(name.partition(":")[2], U)
        w = make_method(name)(J @ J.mT)
        other = torch.einsum("bk,bkn->bn", w, J)
        assert relative(other, d, U).max() <= 1e-6


@pytest.mark.parametrize(
    "name", [name for name, spec in METHODS.items() if "of" not in spec.options and name != "modo"]
)
def test_rows_brought_to_the_largest_norm(name: str) -> None:
    """DB-MTL: the same as giving the method rows that all have the largest row's norm (modo hangs on its
    rounding)."""
    J = jacobians(3)[:60]
    given = inputs(name, 3)
    largest = J.norm(dim=-1).amax(-1)[:, None, None]
    rows = J / J.norm(dim=-1, keepdim=True) * largest
    d = torch.einsum("bk,bkn->bn", make_method(name)(rows @ rows.mT, **given), rows)
    other = torch.einsum("bk,bkn->bn", make_method(name, normalize="max")(J @ J.mT, **given), J)
    error = relative(other, d, rows)
    assert trusted(name, rows, error).max() <= 2e-6


def trusted(name: str, J: Tensor, error: Tensor, **options: object) -> Tensor:
    """The errors of blocks whose answer does not hang on the last digits of G.

    nash_mtl and fairgrad grow without bound as rows become dependent (they flag it, later than it starts to
    hurt), and a pseudo-inverse drops directions at a threshold: those blocks are left out where a singular
    value lies in between.
    """
    if name not in ("nash_mtl", "fairgrad", "imtl_g", "config", "aligned_mtl"):
        return error
    rows = J if name == "aligned_mtl" else J / J.norm(dim=-1, keepdim=True)
    values = torch.linalg.svdvals(rows)
    values = values / values[:, :1]
    doubtful = ((values > 1e-12) & (values < 3e-4)).any(-1)
    method = make_method(name, **options)
    method(J @ J.mT)
    for flag in ("capped", "undefined"):
        doubtful = doubtful | method.flags.get(flag, torch.zeros_like(doubtful))
    if name in ("nash_mtl", "fairgrad"):
        w = min_norm_weights(rows @ rows.mT)
        doubtful = doubtful | (torch.einsum("bk,bkn->bn", w, rows).norm(dim=-1) < 1e-3)
    assert doubtful.double().mean() < 0.7
    return error[~doubtful]
