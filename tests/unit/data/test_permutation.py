"""Permutations without an index."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_moo.data.permutation import Permutation, shuffled


@given(n=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
@settings(max_examples=100, deadline=None)
def test_is_a_permutation_with_an_inverse(n: int, key: int) -> None:
    permutation = Permutation(n, key)
    images = [permutation(i) for i in range(n)]
    assert sorted(images) == list(range(n))
    assert [permutation.inverse(i) for i in images] == list(range(n))


@given(n=st.integers(10**6, 10**13), key=st.integers(0, 2**64 - 1), i=st.integers(0, 10**6 - 1))
@settings(max_examples=50, deadline=None)
def test_large_sizes_need_no_memory(n: int, key: int, i: int) -> None:
    permutation = Permutation(n, key)
    assert 0 <= permutation(i) < n
    assert permutation.inverse(permutation(i)) == i


def test_looks_random() -> None:
    # Where element 0 of 10 goes, over keys: uniform by a chi-square test (9 degrees of freedom, p about 1e-6
    # at 45).
    hits = np.bincount([Permutation(10, key)(0) for key in range(20_000)], minlength=10)
    assert ((hits - 2000) ** 2 / 2000).sum() < 45
    images = np.array([Permutation(5000, 1)(i) for i in range(5000)])
    assert abs(np.corrcoef(images[:-1], images[1:])[0, 1]) < 0.05, "neighbours must not stay neighbours"


def test_outside_is_refused() -> None:
    with pytest.raises(IndexError):
        Permutation(5, 0)(5)
    with pytest.raises(ValueError, match="n >= 1"):
        Permutation(0, 0)


def test_shuffled_is_a_permutation() -> None:
    assert sorted(shuffled(20, "a")) == list(range(20))
    assert shuffled(20, "a") != shuffled(20, "b")
