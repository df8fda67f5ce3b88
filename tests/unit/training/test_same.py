"""Ranks that disagree: the key, the values and the ranks are named."""

from __future__ import annotations

from megatron_moo.training.same import difference


def test_the_first_key_that_differs_is_named_with_ranks() -> None:
    facts = {
        rank: {"objectives": "3: el ko tr", "--moo-method": "cagrad", "--seed": "1"} for rank in range(12)
    }
    assert difference(facts) is None
    facts[5]["--seed"] = "2"
    assert (
        difference(facts)
        == "the ranks disagree: --seed is 1 on rank 0, 1, 2, 3, 4, 6, 7, 8 and 3 more, 2 on rank 5"
    )
    facts[1]["objectives"] = "2: el ko"
    assert difference(facts) == (
        "the ranks disagree: objectives is 3: el ko tr on rank 0, 2, 3, 4, 5, 6, 7, 8 and 3 more, 2: el ko on rank 1"
    )


def test_a_key_that_only_some_have_is_a_difference() -> None:
    assert difference({0: {"a": "1"}, 1: {"a": "1", "b": "2"}}) == (
        "the ranks disagree: b is not there on rank 0, 2 on rank 1"
    )
