"""Conflict, noise floor and stationarity, against numbers worked out from the rows."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_moo.buckets.step import Resolved
from megatron_moo.training.evidence import (
    conflict_rates,
    cosines,
    moo_record,
    overall_conflict_rate,
    same_cosine,
)


def resolved(gramians: torch.Tensor, weights: torch.Tensor, **kw: torch.Tensor) -> Resolved:
    k = gramians.shape[-1]
    fields = {
        "counts": torch.ones(k), "dropped": torch.zeros(k, dtype=torch.bool), "same": torch.zeros(k, 3), **kw,
    }  # fmt: skip
    return Resolved(step=0, gramians=gramians, weights=weights, **fields)


ROWS = torch.tensor([[[1.0, 0.0], [-1.0, 1.0], [0.0, 2.0]], [[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]]).double()
GRAMIANS = ROWS @ ROWS.transpose(1, 2)


def test_cosines_and_conflict() -> None:
    c = cosines(GRAMIANS)
    assert c[0, 0, 1] == pytest.approx(-1 / math.sqrt(2))
    assert c[0, 1, 2] == pytest.approx(1 / math.sqrt(2))
    assert torch.isnan(c[1, 2]).all(), "an absent language has no direction"
    assert conflict_rates(GRAMIANS).tolist() == pytest.approx([1 / 3, 0.0])
    assert overall_conflict_rate(GRAMIANS) == pytest.approx(1 / 4), "four pairs are known, one conflicts"


def test_noise_floor() -> None:
    same = torch.tensor([[0.5, 1.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 4.0, 1.0]]).double()
    assert same_cosine(same) == pytest.approx((0.5 - 0.5) / 2)
    assert same_cosine(torch.zeros(3, 3)) is None


def test_record() -> None:
    weights = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]).double()
    dropped = torch.tensor([False, False, True])
    record = moo_record(
        resolved(GRAMIANS, weights, dropped=dropped), "cagrad", "layer", ["a", "b"], ["x", "y", "z"]
    )
    assert record["norm"]["a"] == pytest.approx(float((weights[0] @ ROWS[0]).norm()))
    assert record["weights"]["b"] == {"x": 1.0, "y": 0.0, "z": 0.0}
    assert record["dropped"] == ["z"]
    # Block a: the segment from (1, 0) to (-1, 1) passes the origin at distance 1/sqrt(5).
    assert record["stationarity"]["a"] == pytest.approx(1 / math.sqrt(5), rel=1e-5)
    assert set(record["stationarity"]) == {"a", "b", "model"}
    whole = GRAMIANS.sum(0)
    assert record["cosine"][0][1] == pytest.approx(
        float(whole[0, 1] / (whole[0, 0] * whole[1, 1]).sqrt()), rel=1e-5
    )
