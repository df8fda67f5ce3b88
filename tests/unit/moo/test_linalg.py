"""The parts that have no library to stand on."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import scipy.optimize
import torch

from megatron_moo.moo.linalg import eigh, exact_residual, exact_root_rest, jacobi_eigh
from megatron_moo.moo.nnls import nnls
from megatron_moo.moo.simplex import project

from .drawn import gramians


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 13, 16])
def test_jacobi_agrees_with_lapack(k: int) -> None:
    """What a GPU runs, held against what the CPU runs."""
    generator = torch.Generator().manual_seed(k)
    A = torch.randn(20, k, k, generator=generator, dtype=torch.float64)
    A = A + A.mT
    A[1] = torch.eye(k)
    A[2] = A[2][:, :1] @ A[2][:, :1].T
    A[3] = torch.outer(torch.ones(k), torch.ones(k))
    values, vectors = jacobi_eigh(A)
    size = torch.linalg.matrix_norm(A)[:, None]
    assert ((values - eigh(A)[0]).abs() <= 1e-13 * size).all()
    assert torch.allclose(vectors.mT @ vectors, torch.eye(k).double().expand_as(A), atol=1e-12)
    rebuilt = vectors * values[:, None] @ vectors.mT
    assert ((rebuilt - A).abs().amax((-2, -1)) <= 1e-12 * size[:, 0]).all()


def test_the_residual_has_more_digits_than_fp64() -> None:
    """Against exact fractions, where the solution cancels to the last digits."""
    G = gramians(8)[:20]
    b = torch.ones(20, 8, dtype=torch.float64)
    x = torch.linalg.lstsq(G, b.unsqueeze(-1), driver="gelsd").solution.squeeze(-1)
    left = exact_residual(G, x, b)
    for i in range(20):
        for row in range(8):
            terms = [Fraction(G[i, row, j].item()) * Fraction(x[i, j].item()) for j in range(8)]
            exact = Fraction(1) - sum(terms)
            size = float(G[i].abs().max() * x[i].abs().max()) * 8
            assert abs(float(exact - Fraction(left[i, row].item()))) <= 2.0**-70 * size + 1e-15 * abs(
                float(exact)
            )


def test_the_rest_of_a_root() -> None:
    a = torch.rand(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    rest = exact_root_rest(a, a.sqrt())
    for value, root, low in zip(a.tolist(), a.sqrt().tolist(), rest.tolist(), strict=True):
        error = Fraction(value) - (Fraction(root) + Fraction(low)) ** 2
        assert abs(float(error)) <= 1e-29


def test_nnls_against_scipy() -> None:
    """Lawson and Hanson's active-set method on well-conditioned problems: A = L L^T, min ||L^T x - L^-1 b||."""
    rng = np.random.default_rng(0)
    for k in (1, 2, 5, 12):
        M = rng.standard_normal((30, k, k + 2))
        A, b = M @ M.transpose(0, 2, 1) + 0.1 * np.eye(k), rng.standard_normal((30, k))
        d = np.sqrt(np.einsum("bii->bi", A))
        A, b = A / d[:, :, None] / d[:, None, :], b / d
        x = nnls(torch.tensor(A), torch.tensor(b), torch.ones(30, k, dtype=torch.bool), 1e-14)
        for i in range(30):
            root = np.linalg.cholesky(A[i])
            reference = scipy.optimize.nnls(root.T, np.linalg.solve(root, b[i]))[0]
            assert np.allclose(x[i], reference, atol=1e-9)


def test_projection_onto_the_simplex() -> None:
    """Optimality: entries share one shift, and those at 0 would be negative with it."""
    generator = torch.Generator().manual_seed(0)
    y = 3 * torch.randn(200, 7, generator=generator, dtype=torch.float64)
    y[0], y[1] = 1e15 * y[0], torch.zeros(7)
    present = torch.rand(200, 7, generator=generator) < 0.7
    present[:, 0] = True
    z = project(y, present)
    assert torch.allclose(z.sum(-1), torch.ones(200).double()) and (z >= 0).all() and (z[~present] == 0).all()
    for i in range(1, 200):
        on = z[i] > 0
        shift = (y[i] - z[i])[on]
        assert torch.allclose(shift, shift[:1].expand_as(shift), atol=1e-12)
        assert (y[i][present[i] & ~on] <= shift[0] + 1e-12).all()
