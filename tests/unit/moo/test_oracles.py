"""Every solver against an independent solution on J, on the kinds of rows that break solvers, at five scales.

Errors are of d = w^T J, relative to ||J||_F. ``python bench/moo_errors.py`` prints the full table.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from megatron_moo.moo import make_method

from . import cases, oracles
from .cases import Array

COUNT = 5


def directions(method: str, jacobians: list[Array], **options: object) -> list[tuple[Array, bool]]:
    """(d, whether a 0/0 or a cap was flagged) for Jacobians with the same number of rows, in one batch."""
    solver = make_method(method, **options)
    weights = solver(torch.stack([torch.tensor(J @ J.T) for J in jacobians]))
    none = torch.zeros(len(jacobians), dtype=torch.bool)
    flagged = solver.flags.get("undefined", none) | solver.flags.get("capped", none)
    return [(w.numpy() @ J, bool(flag)) for w, J, flag in zip(weights, jacobians, flagged, strict=True)]


def worst_error(
    method: str, kind: str, k: int, oracle: Callable[[Array], Array], count: int = COUNT
) -> float:
    jacobians = list(cases.jacobians(kind, k, count))
    found = directions(method, jacobians)
    errors = [
        np.linalg.norm(d - oracle(J)) / np.linalg.norm(J) for (d, _), J in zip(found, jacobians, strict=True)
    ]
    return float(np.max(errors))


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", cases.SIZES)
def test_mgda(kind: str, k: int) -> None:
    oracle = oracles.mgda_by_support if k <= 5 else oracles.mgda_by_nnls
    assert worst_error("mgda", kind, k, oracle) <= 1e-6


def test_the_two_mgda_oracles_agree() -> None:
    for kind in cases.KINDS:
        for J in cases.jacobians(kind, 5, 3):
            gap = np.linalg.norm(oracles.mgda_by_support(J) - oracles.mgda_by_nnls(J)) / np.linalg.norm(J)
            assert gap <= 1e-7, kind


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", cases.SIZES)
def test_dualproj(kind: str, k: int) -> None:
    assert worst_error("dualproj", kind, k, oracles.dualproj) <= 1e-6


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", cases.SIZES)
def test_upgrad(kind: str, k: int) -> None:
    assert worst_error("upgrad", kind, k, oracles.upgrad, COUNT if k <= 16 else 1) <= 1e-6


@pytest.mark.parametrize("method", ["imtl_g", "config"])
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 13])
def test_equal_projections_and_equal_cosines(method: str, kind: str, k: int) -> None:
    """Held to 1e-6, and to what rounding of G itself leaves of it: the exact solution of the rounded G, in
    60 digits."""
    jacobians = list(cases.jacobians(kind, k, COUNT))
    for J, (d, undefined) in zip(jacobians, directions(method, jacobians), strict=True):
        if undefined:
            assert not d.any()
            continue
        size = np.linalg.norm(J)
        error = np.linalg.norm(d - getattr(oracles, method)(J)) / size
        if error > 1e-6:
            lost = (
                np.linalg.norm(oracles.from_rounded_gramian(method, J) - getattr(oracles, method)(J)) / size
            )
            assert error <= 1.5 * lost, (kind, k)


@pytest.mark.parametrize("method", ["imtl_g", "config"])
@pytest.mark.parametrize("kind", ["ill_conditioned", "nearly_parallel", "nearly_opposed"])
def test_pseudo_inverses_lose_nothing_that_the_gramian_holds(method: str, kind: str) -> None:
    """Eigenvectors in fp64 alone are off by up to 1e-5 here; refined, we are at the exact solution of the given G."""
    errors = []
    for k in (2, 3, 5):
        jacobians = list(cases.jacobians(kind, k, 10))
        for J, (d, _) in zip(jacobians, directions(method, jacobians), strict=True):
            errors.append(np.linalg.norm(d - oracles.from_rounded_gramian(method, J)) / np.linalg.norm(J))
    assert max(errors) <= 1e-9


@pytest.mark.parametrize("method", ["imtl_g", "config"])
@pytest.mark.parametrize("k", [32, 64])
def test_equal_projections_many_objectives(method: str, k: int) -> None:
    for kind in ("random_rows", "rank_deficient", "ill_conditioned", "duplicated", "opposed", "norms_apart"):
        assert worst_error(method, kind, k, getattr(oracles, f"{method}_in_fp64"), 2) <= 1e-6, kind


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_cagrad_by_support(kind: str, k: int, c: float) -> None:
    jacobians = list(cases.jacobians(kind, k, COUNT if k <= 5 else 1))
    for J, (d, undefined) in zip(jacobians, directions("cagrad", jacobians, c=c), strict=True):
        if undefined:
            assert np.linalg.norm(d - J.mean(0)) <= 1e-9 * np.linalg.norm(J)
            continue
        assert np.linalg.norm(d - oracles.cagrad_by_support(J, c)) <= 1e-5 * np.linalg.norm(J), kind


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")
@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", [4, 16, 32])
def test_cagrad_by_conic_solver(kind: str, k: int) -> None:
    """Clarabel solves the primal in d; it stops at about 1e-9 of the objective, so the objective is compared
    too."""
    c = 0.5
    jacobians = list(cases.jacobians(kind, k, 2))
    for J, (d, undefined) in zip(jacobians, directions("cagrad", jacobians, c=c), strict=True):
        reference = oracles.cagrad_by_cone(J, c)
        size = np.linalg.norm(J)
        if undefined:  # every direction that is optimal has products 0 with the rows that cancel
            assert (J @ reference).min() <= 1e-6 * size**2
            continue
        assert (J @ d).min() >= (J @ reference).min() - 1e-9 * size**2, kind
        assert np.linalg.norm(d - reference) <= 2e-4 * size, kind


@pytest.mark.parametrize("kind", cases.KINDS)
@pytest.mark.parametrize("k", [16, 64])
def test_cagrad_by_certificate(kind: str, k: int) -> None:
    """Weak duality bounds the error of any d: ||d - d*||^2 <= 2 r gap / ||J^T o|| on a ball of radius r."""
    c = 0.5
    for J in cases.jacobians(kind, k, 5):
        rows = torch.tensor(J)
        solver = make_method("cagrad", c=c)
        w = solver(rows @ rows.T).numpy()
        if solver.flags["undefined"]:
            continue
        g0, size = J.mean(0), np.linalg.norm(J)
        o = np.clip(w - 1 / k, 0, None)
        o, d, r = o / o.sum(), w @ J, c * np.linalg.norm(g0)
        gap = (o @ J @ g0 + r * np.linalg.norm(o @ J) - (J @ d).min()) / size**2
        # The gap itself is only known to rounding.
        gap = max(gap - 1e-16 * np.linalg.norm(d) / size, 0.0)
        assert np.sqrt(2 * r * gap / np.linalg.norm(o @ J)) <= 1e-5, kind


@pytest.mark.parametrize("kind", ["random_rows", "aligned", "duplicated", "norms_apart", "nearly_parallel"])
@pytest.mark.parametrize("k", [1, 2, 3, 5, 8, 16])
@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_fairgrad_by_newton(kind: str, k: int, alpha: float) -> None:
    jacobians = list(cases.jacobians(kind, k, 3))
    for J, (d, capped) in zip(jacobians, directions("fairgrad", jacobians, alpha=alpha), strict=True):
        reference = oracles.fairgrad(J, alpha) @ J
        assert capped or np.linalg.norm(d - reference) <= 1e-6 * np.linalg.norm(reference), kind


@pytest.mark.parametrize("alpha", [0.2, 5.0, 10.0])
def test_fairgrad_far_alphas(alpha: float) -> None:
    for kind in ("random_rows", "aligned", "norms_apart"):
        for J in cases.jacobians(kind, 4, 3):
            rows = torch.tensor(J)
            solver = make_method("fairgrad", alpha=alpha)
            d = solver(rows @ rows.T).numpy() @ J
            reference = oracles.fairgrad(J, alpha) @ J
            good = np.linalg.norm(d - reference) <= 1e-6 * np.linalg.norm(reference)
            assert good or bool(solver.flags["unconverged"]) or bool(solver.flags["capped"]), kind


def test_nash_is_fairgrad_with_alpha_1_and_can_be_clipped() -> None:
    for J in cases.jacobians("random_rows", 4, 3):
        ((free, _),) = directions("nash_mtl", [J])
        assert np.allclose(free, oracles.fairgrad(J, 1.0) @ J, rtol=1e-8)
        ((clipped, _),) = directions("nash_mtl", [J], max_norm=1.0)
        assert np.linalg.norm(free) == pytest.approx(2.0, rel=1e-9)  # sqrt(K), whatever the gradients
        assert np.allclose(clipped, free / 2.0, rtol=1e-8)


@pytest.mark.parametrize("kind", [kind for kind in cases.KINDS if kind != "rank_deficient"])
@pytest.mark.parametrize("scale", ["min", "median", "rmse"])
def test_aligned_mtl_by_singular_values(kind: str, scale: str) -> None:
    for k in (2, 3, 5, 8):
        jacobians = list(cases.jacobians(kind, k, 3))
        for J, (d, _) in zip(jacobians, directions("aligned_mtl", jacobians, scale=scale), strict=True):
            reference = oracles.aligned_mtl(J, scale)
            if reference is not None:
                assert np.linalg.norm(d - reference) <= 1e-5 * np.linalg.norm(J), (kind, k)
