"""Names of blocks, and the cutting of buckets into segments."""

from __future__ import annotations

import random

import pytest

from megatron_moo.buckets.blocks import (
    EXCLUDED,
    Kind,
    Placed,
    Segment,
    block_of,
    natural_key,
    segments_of_shard,
)

QKV = "decoder.layers.11.self_attention.linear_qkv.weight"


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        (QKV, "decoder.layers.11", "decoder.layers.11.attention"),
        ("decoder.layers.0.mlp.linear_fc1.weight", "decoder.layers.0", "decoder.layers.0.mlp"),
        (
            "decoder.layers.0.mlp.experts.local_experts.3.linear_fc1.weight",
            "decoder.layers.0",
            "decoder.layers.0.mlp",
        ),
        ("decoder.layers.2.input_layernorm.weight", "decoder.layers.2", "decoder.layers.2.norms"),
        ("decoder.layers.2.self_attention.q_layernorm.weight", "decoder.layers.2", "decoder.layers.2.norms"),
        ("embedding.word_embeddings.weight", "embedding", "embedding"),
        ("decoder.final_layernorm.weight", "head", "final_norm"),
        ("output_layer.weight", "head", "head"),
    ],
)
def test_block_of(name: str, layer: str, module: str) -> None:
    assert block_of(name, "layer", "b0") == layer
    assert block_of(name, "module", "b0") == module
    assert block_of(name, "param", "b0") == name
    assert block_of(name, "model", "b0") == "model"
    assert block_of(name, "bucket", "b0") == "b0"


def test_excluded_parameters_form_a_block() -> None:
    assert block_of(QKV, "layer", "b0", exclude="qkv|embedding") == EXCLUDED
    assert block_of(QKV, "layer", "b0", exclude="embedding") == "decoder.layers.11"


def test_unknown_block() -> None:
    with pytest.raises(ValueError, match="tensor"):
        block_of(QKV, "tensor", "b0")


def test_layers_sort_as_numbers() -> None:
    names = ["decoder.layers.10", "embedding", "decoder.layers.9", "decoder.layers.9.mlp"]
    assert sorted(names, key=natural_key) == [
        "decoder.layers.9", "decoder.layers.9.mlp", "decoder.layers.10", "embedding",
    ]  # fmt: skip


def test_neighbours_of_a_block_join_over_padding() -> None:
    placed = [Placed("a", 0, 5, Kind.OWN), Placed("b", 8, 12, Kind.OWN), Placed("c", 12, 20, Kind.COPY)]
    segments = segments_of_shard(placed, (0, 20), {"a": 0, "b": 0, "c": 1})
    assert segments == (Segment(0, 12, 0, Kind.OWN), Segment(12, 20, 1, Kind.COPY))


def test_shards_cover_every_value_once() -> None:
    """Random layouts: each parameter's values are in exactly one shard, under its block and kind."""
    rng = random.Random(5)
    for _ in range(200):
        members, shard = rng.choice([1, 2, 4, 8]), rng.randint(1, 40)
        placed, at = [], 0
        while at < members * shard - 2:
            start = at + rng.randint(0, 3)
            end = min(start + rng.randint(1, 25), members * shard)
            if start < end:
                placed.append(Placed(str(len(placed)), start, end, rng.choice(list(Kind))))
            at = end
        rng.shuffle(placed)
        expected = {}
        for item in placed:
            for value in range(item.start, item.end):
                expected[value] = (int(item.name) % 3, item.kind)
        found: dict[int, tuple[int, Kind]] = {}
        for rank in range(members):
            for segment in segments_of_shard(
                placed, (rank * shard, (rank + 1) * shard), {item.name: int(item.name) % 3 for item in placed}
            ):
                for value in range(segment.start, segment.end):
                    assert rank * shard + value not in found
                    found[rank * shard + value] = (segment.block, segment.kind)
        assert {value: found[value] for value in expected} == expected
