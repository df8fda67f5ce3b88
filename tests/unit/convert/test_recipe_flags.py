"""What a checkpoint's arguments say, held against the config."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from megatron_moo.convert.recipe_flags import differences, to_arguments
from megatron_moo.models.families import families
from megatron_moo.models.families.config import Config

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "max_position_embeddings": 64, "hidden_act": "silu", "rms_norm_eps": 1e-5,
}  # fmt: skip


def told(groups: int, **changed: Any) -> list[str]:
    family = next(item for item in families() if item.name == "llama")
    model = family.read(Config({**CONFIG, "num_key_value_heads": groups}, "config.json"))
    return differences(model, Namespace(**{**vars(to_arguments(model, "float32")), **changed}))


def test_a_models_own_arguments_differ_in_nothing() -> None:
    assert told(4) == told(2) == []


def test_attention_without_groups_is_one_group_a_head() -> None:
    """What Megatron writes of a run that named no groups: num_query_groups stays at its default, 1."""
    plain = {"group_query_attention": False, "num_query_groups": 1, "kv_channels": None}
    assert told(4, **plain) == []
    assert told(2, **plain) == ["num_query_groups is 4 in the checkpoint and 2 in the config"]


@pytest.mark.parametrize("width", [8, None])
def test_other_groups_and_widths_are_told(width: int | None) -> None:
    assert told(4, group_query_attention=True, num_query_groups=2, kv_channels=width) == [
        "num_query_groups is 2 in the checkpoint and 4 in the config"
    ]
    assert told(4, kv_channels=16) == ["kv_channels is 16 in the checkpoint and 8 in the config"]
