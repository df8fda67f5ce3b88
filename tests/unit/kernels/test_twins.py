"""The torch kernels against fp64, at odd sizes and with what must not spread."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.kernels import combine, gramian

SIZES = (1, 3, 4095, 4096, 4097, 64 * 4096, 64 * 4096 + 4096 + 7)


def rows_of(count: int, n: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, n, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("count", [1, 2, 3, 8, 32])
def test_gramian(count: int, n: int) -> None:
    x = rows_of(count, n)
    exact = x.double() @ x.double().T
    assert ((gramian([x]) - exact).abs() / exact.diagonal().max()).max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gramian_of_pieces_and_slices(dtype: torch.dtype) -> None:
    """Rows of several slots, each a slice of columns of a wider buffer."""
    wide = [rows_of(2, 9000, dtype, 1), rows_of(3, 9000, torch.float32, 2)]
    pieces = [piece[:, 17:8017] for piece in wide]
    x = torch.cat([piece.double() for piece in pieces])
    torch.testing.assert_close(gramian(pieces), x @ x.T, rtol=2e-6, atol=8e-3)


def test_gramian_of_millions_of_values() -> None:
    """Partial sums over a few hundred values in fp32, added in fp64: errors average out instead of growing."""
    x = rows_of(2, 8_000_000) + 1.0
    exact = x.double() @ x.double().T
    assert (gramian([x]) - exact).abs().max() / exact.max() <= 3e-8


def test_a_bad_row_spoils_only_its_own_products() -> None:
    x = rows_of(3, 5000)
    x[1, 4321] = float("nan")
    g = gramian([x])
    assert torch.isnan(g[1]).all() and torch.isnan(g[:, 1]).all()
    assert torch.isfinite(g[[0, 2]][:, [0, 2]]).all()


@pytest.mark.parametrize("n", [*SIZES, (1 << 16) + 1])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_combine_in_place(count: int, n: int) -> None:
    x = rows_of(count, n)
    c = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    expected = c @ x.double()
    for masked in (True, False):
        buffer = x.clone()
        combine([buffer], c, buffer[count - 1], masked)
        torch.testing.assert_close(buffer[count - 1].double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(buffer[: count - 1], x[: count - 1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_combine_leaves_out_rows_without_weight(bad: float) -> None:
    x = rows_of(3, 70_000)
    x[1, 69_999] = bad
    out = torch.empty(70_000)
    combine([x], torch.tensor([0.5, 0.0, 2.0]), out)
    torch.testing.assert_close(out, 0.5 * x[0] + 2.0 * x[2])


def test_combine_writes_bf16() -> None:
    x = rows_of(2, 1000, torch.bfloat16)
    out = torch.empty(1000, dtype=torch.bfloat16)
    combine([x], torch.tensor([0.25, 0.5]), out)
    torch.testing.assert_close(out, (0.25 * x[0].float() + 0.5 * x[1].float()).bfloat16())


@pytest.mark.parametrize("k", [2, 4, 8])
def test_gramian_of_equal_values(k: int) -> None:
    """Rounding has a direction there, so that long partial sums drift (1e-5 with 4,096 values)."""
    x = torch.full((k, 1_000_000), 0.37) * torch.arange(1, k + 1)[:, None]
    exact = x.double() @ x.double().T
    assert ((gramian([x]) - exact).abs().max() / exact.diagonal().max()).item() <= 1e-6
