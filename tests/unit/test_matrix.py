"""Cases of the layouts matrix that are named after a family of models route as the converter says it does."""

from __future__ import annotations

import pytest

from megatron_moo.models.families.moe import expert_flags
from megatron_moo.training.recipe import to_argv
from tests.distributed.matrix import CASES, MOE, OVERLAP, QK_NORM, UNTIED


@pytest.mark.parametrize(("name", "more"), [("mixtral-like", ()), ("qwen3-moe-like", QK_NORM)])
def test_a_family_routes_as_its_converter_says(name: str, more: tuple[str, ...]) -> None:
    assert sorted(MOE) == sorted(to_argv(expert_flags(4, 2, 24)))
    (case,) = (case for case in CASES if case.name.startswith(name))
    assert set(case.flags) - {*UNTIED, *OVERLAP} == {*MOE, *more}
