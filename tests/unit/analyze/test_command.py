"""Hidden states of single sentences, and the command on two tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_moo.analyze.curves import CURVES
from megatron_moo.analyze.hidden import collect, common_sentences
from megatron_moo.cli import main
from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import read_aligned
from tests.unit.evaluate.tiny import opened, tiny_model, write_text


def test_states_are_means_over_the_tokens_of_single_sentences(tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text", pages=4))
    model = opened(tiny_model(tmp_path / "hf"))
    keys = common_sentences(texts, 9)
    found = collect(model, texts, keys, tokens=30, batch=4)
    assert len(found.states) == 3 and found.states[0].shape == (2, 9, 32)
    assert len(found.active) == 2 and found.active[0].shape == (2, 64)
    active = np.zeros(64)
    total = 0
    for n, key in enumerate(keys):
        ids = model.tokenizer.encode_batch([texts["bb"].paragraphs[key]])[0][:30]
        with torch.no_grad():
            out = model.model(torch.tensor([ids]), output_hidden_states=True)
            gate = model.model.model.layers[1].mlp.gate_proj(_mlp_input(model.model, ids))
        for layer, hidden in enumerate(out.hidden_states):
            np.testing.assert_allclose(found.states[layer][1, n], hidden[0, 1:].mean(0).numpy(), atol=2e-5)
        active += (gate[0] > 0).sum(0).numpy()
        total += len(ids)
    np.testing.assert_allclose(found.active[1][1], active / total, atol=1e-9)


def _mlp_input(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = model.model.layers[1].mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    return seen[0]


def test_sentences_are_common_and_none_comes_twice(tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text", pages=4))
    gone = ("page1", 2)
    del texts["bb"].paragraphs[gone]
    texts["aa"].paragraphs["page2", 2] = texts["aa"].paragraphs["page2", 1]
    keys = common_sentences(texts, 100)
    assert gone not in keys and len(keys) == 18
    with pytest.raises(MooError, match="4 paragraphs are in all of aa, bb"):
        common_sentences(texts, 4)


def test_before_and_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(tmp_path / "text", pages=4)
    one, two = tiny_model(tmp_path / "before"), tiny_model(tmp_path / "after", seed=1)
    out = tmp_path / "out"
    arguments = ["analyze", str(one), "--against", str(two), "--text", str(text), "--tokenizer", "byte"]
    assert main([*arguments, "--sentences", "16", "--out", str(out)]) == 0
    found = json.loads((out / "analysis.json").read_text())["models"]
    assert [item["model"] for item in found] == ["before", "after"]
    for item in found:
        assert item["languages"] == ["aa", "bb"] and item["sentences"] == 16 and len(item["layers"]) == 3
        for layer in item["layers"][1:]:
            assert set(CURVES) <= set(layer) and sum(layer["owned_by"].values()) >= 0
        # Two alphabets without a shared letter: told apart from the embedding on.
        assert item["layers"][0]["probe"] == 1.0 and item["layers"][0]["variance_language"] > 0.3
    names = {path.name for path in out.iterdir()}
    assert names == {
        "analysis.json",
        "layers.png",
        "before-cka.png",
        "before-plane.png",
        "after-cka.png",
        "after-plane.png",
    }
    assert "chance of the" in capsys.readouterr().out
    assert main(["analyze", str(one), "--text", str(text), "--languages", "aa", "--tokenizer", "byte"]) == 2
