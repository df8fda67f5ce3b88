"""``rope_parameters`` beside the older ``rope_scaling``: read in the order in which transformers reads them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import Gemma3TextConfig, GptOssConfig, LlamaConfig, Olmo3Config

from megatron_moo.errors import MooError
from megatron_moo.models.families import common, gpt_oss
from megatron_moo.models.families.config import Config

LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {
    "rope_type": "yarn", "factor": 8.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
BOTH: dict[str, dict[str, Any]] = {
    "default, linear": {"rope_parameters": {"rope_type": "default"}, "rope_scaling": LINEAR},
    "empty, linear": {"rope_parameters": {}, "rope_scaling": LINEAR},
    "linear, empty": {"rope_parameters": LINEAR, "rope_scaling": {}},
    "linear, null": {"rope_parameters": LINEAR, "rope_scaling": None},
    "none, linear": {"rope_scaling": LINEAR},
    "none, empty": {"rope_scaling": {}},
    "two factors": {"rope_parameters": {**LINEAR, "factor": 2.0}, "rope_scaling": LINEAR},
    "a base inside": {"rope_parameters": {"rope_theta": 77.0}, "rope_scaling": LINEAR},
    "a base inside and outside": {"rope_parameters": {"rope_theta": 77.0}, "rope_theta": 88.0},
    "the same kind in the older key": {"rope_scaling": {"type": "linear", "factor": 4.0}},
}


def _ours(flags: dict[str, Any], extras: dict[str, Any]) -> tuple[float, str, float]:
    rope = extras.get("rope", {"base": flags["rotary-base"]})
    return float(rope["base"]), rope.get("type", "default"), float(rope.get("factor", 1.0))


def _theirs(values: dict[str, Any]) -> tuple[float, str, float]:
    return float(values["rope_theta"]), values["rope_type"], float(values.get("factor") or 1.0)


@pytest.mark.parametrize("name", BOTH)
def test_a_llama_is_read_as_by_transformers(name: str) -> None:
    flags: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    common.rope(Config(copy.deepcopy(BOTH[name])), flags, extras)
    found = LlamaConfig.from_dict(copy.deepcopy(BOTH[name])).rope_parameters
    assert _ours(flags, extras) == _theirs(found)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rope_scaling": {}},
        {"rope_parameters": {}},
        {"rope_scaling": YARN},
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": YARN},
        {"rope_parameters": YARN, "rope_scaling": {}},
    ],
    ids=str,
)
def test_a_gpt_oss_is_read_as_by_transformers(given: dict[str, Any]) -> None:
    flags: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    gpt_oss._yarn(Config(copy.deepcopy(given)), flags, extras)
    assert _ours(flags, extras) == _theirs(GptOssConfig.from_dict(copy.deepcopy(given)).rope_parameters)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"rope_scaling": LINEAR},
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}, "rope_scaling": LINEAR},
        {
            "rope_parameters": {
                "full_attention": {**LINEAR, "factor": 2.0, "rope_theta": 77.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 66.0},
            },
            "rope_scaling": LINEAR,
        },
        {"rope_parameters": {"full_attention": LINEAR}, "rope_scaling": {}},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("theirs", "full", "local"),
    [(Gemma3TextConfig, 1e6, 1e4), (Olmo3Config, 5e5, 5e5)],
    ids=["gemma3", "olmo3"],
)
def test_two_ropes_are_read_as_by_transformers(
    theirs: Any, full: float, local: float, given: dict[str, Any]
) -> None:
    flags: dict[str, Any] = {}
    extras: dict[str, Any] = {}
    common.two_ropes(Config(copy.deepcopy(given)), flags, extras, full, local)
    found = theirs.from_dict(copy.deepcopy(given)).rope_parameters
    assert _ours(flags, extras) == _theirs(found["full_attention"])
    other = {"rope": extras["local_rope"]} if "local_rope" in extras else extras
    assert _ours(flags, other) == _theirs(found["sliding_attention"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rope_parameters": {}, "rope_scaling": LINEAR}, "rope_scaling stands beside"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "type and no rope_type"),
        ({"rope_scaling": [1]}, "rope_scaling is"),
    ],
)
def test_two_ropes_that_transformers_does_not_read_so_are_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(MooError, match=told):
        common.two_ropes(Config(given), {}, {}, 1e6, 1e4)
