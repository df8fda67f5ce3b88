"""The Triton kernels on a CPU, run by Triton's interpreter in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from megatron_moo.kernels.solve import SOLVED
from tests.unit.kernels import checks, checks_more

Run = Callable[..., Any]
DTYPES = [torch.float32, torch.bfloat16]
COUNTS = [1, 2, 3, 8, 32]


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 127, 128, 129, 4097])
def test_pack(interpreted: Run, n: int, dtype: torch.dtype, format: str) -> None:
    for seed, feedback in ((None, False), (7, False), (None, True), (8, True)):
        interpreted(checks.check_pack, "cpu", n, dtype, format, seed, feedback)


def test_pack_of_rows_that_start_anywhere(interpreted: Run) -> None:
    for shift in (1, 3):
        interpreted(checks.check_pack, "cpu", 1000, torch.bfloat16, "e4m3", None, False, shift)


@pytest.mark.parametrize("format", ["e4m3", "e5m2"])
def test_stochastic_rounding(interpreted: Run, format: str) -> None:
    interpreted(checks.check_chance, "cpu", format)


@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("kind", ["fp32", "bf16", "e4m3", "e5m2"])
def test_gramian(interpreted: Run, kind: str, k: int) -> None:
    interpreted(checks.check_gramian, "cpu", kind, k)


@pytest.mark.parametrize("kind", ["fp32", "bf16", "mixed"])
def test_gramian_of_pieces_that_start_anywhere(interpreted: Run, kind: str) -> None:
    interpreted(checks.check_gramian, "cpu", kind, 8, 3)


@pytest.mark.parametrize("kind", ["fp32", "e4m3", "e5m2"])
def test_gramian_counts_what_is_not_finite(interpreted: Run, kind: str) -> None:
    interpreted(checks.check_bad_values, "cpu", kind)


@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("kind", ["fp32", "bf16", "e4m3", "e5m2"])
def test_combine(interpreted: Run, kind: str, k: int) -> None:
    interpreted(checks.check_combine, "cpu", kind, k, torch.float32)


@pytest.mark.parametrize("kind", ["fp32", "mixed"])
def test_combine_to_bf16(interpreted: Run, kind: str) -> None:
    interpreted(checks.check_combine, "cpu", kind, 3, torch.bfloat16)


@pytest.mark.parametrize("kind", ["fp32", "mixed"])
def test_combine_of_pieces_that_start_anywhere(interpreted: Run, kind: str) -> None:
    interpreted(checks.check_combine, "cpu", kind, 8, torch.float32, 1)


@pytest.mark.parametrize("k", [1, 7])
def test_combine_in_place(interpreted: Run, k: int) -> None:
    interpreted(checks.check_combine_in_place, "cpu", k)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
@pytest.mark.parametrize("method", SOLVED)
def test_solve(interpreted: Run, method: str, k: int) -> None:
    interpreted(checks_more.check_solve, "cpu", method, k, 5 if k == 3 else 2)


@pytest.mark.parametrize("method", ["mgda", "cagrad", "dualproj"])  # upgrad is 32 times dualproj's program
def test_solve_of_32_rows(interpreted: Run, method: str) -> None:
    interpreted(checks_more.check_solve, "cpu", method, 32, 1)


@pytest.mark.parametrize("method", ["cagrad", "upgrad", "dualproj"])
def test_solve_with_a_preference(interpreted: Run, method: str) -> None:
    interpreted(checks_more.check_solve, "cpu", method, 2, 2, True)


@pytest.mark.parametrize("method", SOLVED)
def test_solve_drops_bad_rows(interpreted: Run, method: str) -> None:
    interpreted(checks_more.check_solve_drops, "cpu", method)


@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm(interpreted: Run, dtype: torch.dtype, zero_centered: bool) -> None:
    for rows, n in ((1, 1), (5, 128), (7, 1000)):
        interpreted(checks_more.check_norm, "cpu", rows, n, dtype, zero_centered)


def test_norm_of_bf16_with_weights_in_fp32(interpreted: Run) -> None:
    interpreted(checks_more.check_norm, "cpu", 3, 130, torch.bfloat16, True, torch.float32)
