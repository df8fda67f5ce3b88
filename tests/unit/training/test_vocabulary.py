"""A run keeps its padded vocabulary: the padding takes part in the loss, so another size of it is another model."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training.plan import _settle_vocabulary


def settled(tp: int, before: dict[str, Any], each: int = 128) -> tuple[int, int | None]:
    values: dict[str, Any] = {}
    args = Namespace(tensor_model_parallel_size=tp, make_vocab_size_divisible_by=each)
    return _settle_vocabulary(values, args, before, 257), values.get("make-vocab-size-divisible-by")


def test_a_new_run_is_padded_as_megatron_does() -> None:
    assert settled(1, {}) == (384, None)
    assert settled(2, {}) == (512, None)


@pytest.mark.parametrize(
    "before",
    [{"vocabulary": 384}, {"flags": {"vocab-size": 257}}, {"flags": {"tensor-model-parallel-size": 1}}],
    ids=["recorded", "from the flags", "from a run of before"],
)
def test_a_run_that_goes_on_keeps_its_padding(before: dict[str, Any]) -> None:
    assert settled(1, before) == (384, None)
    assert settled(2, before) == (384, 192), "257 to a multiple of 192 x 2"
    with pytest.raises(MooError, match="the run's vocabulary of 384 does not divide into 5 ranks"):
        settled(5, before)


def test_back_to_fewer_ranks() -> None:
    assert settled(1, {"vocabulary": 512}) == (512, 512)
    assert settled(2, {"flags": {"make-vocab-size-divisible-by": 192, "tensor-model-parallel-size": 2}}) == (
        384,
        192,
    )
