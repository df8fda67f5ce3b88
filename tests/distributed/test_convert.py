"""Converted checkpoints against transformers: the same logits at every layout, the same bits on the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_moo.convert.exporter import export_checkpoint
from megatron_moo.convert.importer import import_checkpoint
from tests.distributed.convert_ranks import held_out, logits_worker, train_worker
from tests.distributed.convert_zoo import ZOO, Tiny, by_name, make, tokens
from tests.pool import RankPool

# (tensor-parallel, pipeline-parallel) sizes; the first in every run of the tests.
LAYOUTS = ((2, 2), (1, 1), (2, 1), (1, 2))
CASES = [
    pytest.param(
        tiny,
        layout,
        id=f"{tiny.name}, tp{layout[0]}-pp{layout[1]}",
        marks=[] if layout == LAYOUTS[0] else [pytest.mark.slow],
    )
    for tiny in ZOO
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("tiny", "layout"), CASES)
def test_logits_equal_transformers(
    pool: RankPool, tmp_path: Path, tiny: Tiny, layout: tuple[int, int]
) -> None:
    tp, pp = layout
    reference = make(tiny, tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron")
    ids = tokens()
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).logits[0]

    found = pool.run(logits_worker, tp * pp, tmp_path / "megatron", tp, pp, ids)[-1]

    vocab = reference.config.vocab_size
    assert (found[:, :vocab] - wanted).abs().max() <= 1e-5
    # Rows that only pad the vocabulary get no probability.
    assert torch.all(found[:, vocab:].softmax(-1).isfinite())
    assert torch.all(found.softmax(-1)[:, vocab:] == 0)


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
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    configs = [json.loads((tmp_path / side / "config.json").read_text()) for side in ("hf", "back")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize(("name", "tp", "pp", "dp"), [("llama tied, padded", 2, 1, 1), ("qwen3", 1, 2, 1)])
def test_a_trained_checkpoint_exports(
    pool: RankPool, tmp_path: Path, name: str, tp: int, pp: int, dp: int
) -> None:
    before = make(by_name(name), tmp_path / "hf")
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron")
    _, loss = pool.run(train_worker, tp * pp * dp, tmp_path / "megatron", tmp_path / "run", tp, pp)[-1]

    export_checkpoint(tmp_path / "run", tmp_path / "trained")

    model = type(before).from_pretrained(tmp_path / "trained", attn_implementation="eager").eval()
    ids = held_out()
    with torch.no_grad():
        theirs, untrained = (
            float(
                torch.nn.functional.cross_entropy(m(ids[:, :-1]).logits.flatten(0, 1), ids[:, 1:].flatten())
            )
            for m in (model, before)
        )
    assert abs(theirs - loss) <= 1e-5
    assert abs(theirs - untrained) >= 1e-2
