"""Converted checkpoints against transformers: the same logits at every layout, the same bits on the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from megatron_moo.convert.exporter import export_checkpoint
from megatron_moo.convert.importer import import_checkpoint
from tests.distributed.convert_logits import compare_logits
from tests.distributed.convert_ranks import batches, held_out, train_worker
from tests.distributed.convert_zoo import LAYOUTS, ZOO, Layout, Tiny, by_name, make, opposite
from tests.pool import RankPool

CASES = [
    pytest.param(
        tiny,
        layout,
        id=f"{tiny.name}, {layout.name}",
        marks=[] if layout == LAYOUTS[0] and tiny in ZOO else [pytest.mark.slow],
    )
    for tiny in (*ZOO, *map(opposite, ZOO))
    for layout in LAYOUTS
    if layout.fits(tiny)
]


@pytest.mark.parametrize(("tiny", "layout"), CASES)
def test_logits_equal_transformers(pool: RankPool, tmp_path: Path, tiny: Tiny, layout: Layout) -> None:
    found = compare_logits(pool, tmp_path, tiny, layout)
    assert found.gap <= 1e-5
    # Rows that only pad the vocabulary get no probability.
    assert found.padding_is_silent


# Loaded in every run of the tests: a layer with a window and two ropes, cut along the sequence; and cut experts.
@pytest.mark.parametrize(("name", "layout"), [("gemma3", Layout(cp=2)), ("qwen3_moe", Layout(ep=2))])
def test_logits_of_a_cut_sequence_and_of_cut_experts(
    pool: RankPool, tmp_path: Path, name: str, layout: Layout
) -> None:
    assert compare_logits(pool, tmp_path, by_name(name), layout).gap <= 1e-5


@pytest.mark.parametrize("tiny", ZOO, ids=lambda tiny: tiny.name)
def test_there_and_back_is_the_same_bits(tmp_path: Path, tiny: Tiny) -> None:
    make(tiny, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")

    before, after = (
        load_file(tmp_path / "hf/model.safetensors"),
        load_file(tmp_path / "back/model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(bits(after[name]), bits(tensor)), name
    configs = [json.loads((tmp_path / side / "config.json").read_text()) for side in ("hf", "back")]
    assert configs[0] == configs[1]


# Trained in every run of the tests: each has modules of ours with parameters.
QUICK = ("llama tied, padded", "gemma3", "olmo3, yarn", "apertus", "cohere")
TRAINED = [
    pytest.param(tiny, id=tiny.name, marks=[] if tiny.name in QUICK else [pytest.mark.slow]) for tiny in ZOO
]


@pytest.mark.parametrize("tiny", TRAINED)
def test_a_trained_checkpoint_exports(pool: RankPool, tmp_path: Path, tiny: Tiny) -> None:
    before = make(tiny, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron")
    more = {"sequence-parallel": True}
    losses, norms, loss = pool.run(train_worker, 2, tmp_path / "megatron", tmp_path / "run", 2, 1, **more)[-1]

    export_checkpoint(tmp_path / "run", tmp_path / "trained")

    # The first step: loss and norm of the gradient are those of transformers and torch.autograd.
    batch = next(batches(0))
    first = loss_of(before, batch["tokens"], batch["labels"])
    first.backward()
    norm = torch.stack([p.grad.norm() for p in before.parameters() if p.grad is not None]).norm()
    assert abs(first.item() - losses[0]) <= 1e-5
    assert abs(float(norm) - norms[0]) <= 1e-4 * float(norm)
    # After the last: transformers' loss of the exported weights is Megatron's.
    model = type(before).from_pretrained(tmp_path / "trained", attn_implementation="eager").eval()
    ids = held_out()
    with torch.no_grad():
        theirs, untrained = (float(loss_of(m, ids[:, :-1], ids[:, 1:])) for m in (model, before))
    assert abs(theirs - loss) <= 1e-5
    assert abs(theirs - untrained) >= 1e-3


def loss_of(model: Any, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of a transformers model."""
    return torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten())


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor."""
    return tensor.reshape(-1).view(torch.uint8)
