"""The Triton kernels on a CPU, run by Triton's interpreter in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.unit.kernels import checks

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", COUNTS)
@pytest.mark.parametrize("kind", ["fp32", "bf16", "e4m3", "e5m2"])
def test_combine(interpreted: Run, kind: str, k: int, dtype: torch.dtype) -> None:
    interpreted(checks.check_combine, "cpu", kind, k, dtype)


@pytest.mark.parametrize("kind", ["fp32", "mixed"])
def test_combine_of_pieces_that_start_anywhere(interpreted: Run, kind: str) -> None:
    interpreted(checks.check_combine, "cpu", kind, 8, torch.float32, 1)


@pytest.mark.parametrize("k", [1, 7])
def test_combine_in_place(interpreted: Run, k: int) -> None:
    interpreted(checks.check_combine_in_place, "cpu", k)
