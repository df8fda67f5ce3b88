"""Hidden states of single sentences, and the command on two tiny models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_moo.analyze.analyze import between
from megatron_moo.analyze.curves import CURVES
from megatron_moo.analyze.hidden import Hidden, collect, common_sentences
from megatron_moo.cli import main
from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import read_aligned
from megatron_moo.report.page import write_report
from tests.unit.evaluate.tiny import opened, tiny_model, write_text
from tests.unit.report.fake_run import FakeRun
from tests.unit.report.html import Page


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


def test_a_tokenizers_own_first_piece_is_given_and_not_counted(tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text", pages=4))
    model = opened(tiny_model(tmp_path / "hf"))
    model.bos = (256,)
    keys = common_sentences(texts, 9)
    found = collect(model, texts, keys, tokens=30, batch=4)
    active, total = np.zeros(64), 0
    for n, key in enumerate(keys):
        ids = [256, *model.tokenizer.encode_batch([texts["aa"].paragraphs[key]])[0]][:30]
        with torch.no_grad():
            out = model.model(torch.tensor([ids]), output_hidden_states=True)
            gate = model.model.model.layers[0].mlp.gate_proj(_mlp_input(model.model, ids, 0))
        np.testing.assert_allclose(
            found.states[2][0, n], out.hidden_states[2][0, 1:].mean(0).numpy(), atol=2e-5
        )
        active += (gate[0, 1:] > 0).sum(0).numpy()
        total += len(ids) - 1
    np.testing.assert_allclose(found.active[0][0], active / total, atol=1e-9)


def _mlp_input(model: torch.nn.Module, ids: list[int], layer: int = 1) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = model.model.layers[layer].mlp.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
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
    told = json.loads((out / "analysis.json").read_text())
    found = told["models"]
    assert [layer["layer"] for layer in told["between"]] == [0, 1, 2]
    assert all(0 < layer["chance"] < 1 for layer in told["between"])
    assert all(0 < layer["cka"] < 1 and set(layer["cka_by"]) == {"aa", "bb"} for layer in told["between"])
    assert [item["model"] for item in found] == ["before", "after"]
    for item in found:
        assert item["languages"] == ["aa", "bb"] and item["sentences"] == 16 and len(item["layers"]) == 3
        assert len(item["text"]) == 12 and item["tokens"] == 128
        assert all(0 < layer["cka_chance"] < 1 for layer in item["layers"])
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
    shown = capsys.readouterr().out
    assert (
        "chance of the" in shown
        and "CKA between before and after" in shown
        and "owns, all layers: aa " in shown
    )
    assert main(["analyze", str(one), "--text", str(text), "--languages", "aa", "--tokenizer", "byte"]) == 2


def test_a_model_is_all_like_itself_and_depths_must_be_equal() -> None:
    random = np.random.default_rng(0)
    one = Hidden(("aa", "bb"), [random.normal(size=(2, 9, 5)) for _ in range(3)], [])
    for layer in between(one, one):
        assert layer["cka"] == pytest.approx(1.0) and layer["cka_by"]["bb"] == pytest.approx(1.0)
    other = Hidden(one.languages, [one.states[0], one.states[1], random.normal(size=(2, 9, 7))], [])
    assert [round(layer["cka"], 6) == 1 for layer in between(one, other)] == [True, True, False]
    assert between(one, Hidden(one.languages, one.states[:2], [])) == []


def test_a_run_gets_its_files_beside_it_and_its_page_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint against an earlier one of the same run, then eval, then the report."""
    run = _run(tmp_path / "run", {20: 0, 40: 1})
    text = write_text(tmp_path / "text", pages=12)
    monkeypatch.chdir(tmp_path)
    common = ["--text", str(text), "--tokenizer", "byte"]
    earlier = run / "checkpoints" / "iter_0000020"
    assert (
        main(["analyze", str(run), "--against", str(earlier), *common, "--sentences", "12", "--tokens", "24"])
        == 0
    )
    found = json.loads((run / "analysis" / "analysis.json").read_text())["models"]
    assert [(item["model"], item["step"]) for item in found] == [("run", 40), ("run-iter_0000020", 20)]
    assert (
        main(
            [
                "eval",
                str(run),
                *common,
                "--seq-length",
                "32",
                "--windows",
                "2",
                "--items",
                "6",
                "--new-tokens",
                "4",
            ]
        )
        == 0
    )
    told = json.loads((run / "eval.json").read_text())
    assert told["step"] == 40 and told["windows"] == 2 and told["unseen"] == ["bb"]
    shown = capsys.readouterr().out
    assert "bb *" in shown and "aa *" not in shown and "* unseen" in shown
    assert f"megatron-moo report {run} shows them" in shown and f"megatron-moo report {run} shows it" in shown
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf-20", "hf-40", "run", "text"]
    page = Page(write_report(run))
    assert {"eval-table", "eval-cloze", "layer-cka", "layer-between", "plane-0-1", "cka-matrix-1"} <= set(
        page.plots()
    )
    assert "Not measured for this run" not in page.words("eval-table")
    value = found[0]["layers"][2]["silhouette"]
    assert page.data("layer-silhouette")["s"][0]["v"][2] == pytest.approx(value, rel=1e-2)
    assert "This is the checkpoint of step 40; the run has gone on to step 60 since." in page.words()


def _run(folder: Path, steps: dict[int, int]) -> Path:
    """A run folder with a checkpoint of a tiny model at each of ``steps`` (step to seed)."""
    from megatron_moo.convert.importer import import_checkpoint

    FakeRun(seen=("aa",), unseen=("bb",), blocks=("a",)).write(folder)
    (folder / "recipe.yaml").write_text(f"flags:\n  seq-length: 32\n  corpus: {folder}/gone\n")
    for step, seed in steps.items():
        hf = tiny_model(folder.parent / f"hf-{step}", seed=seed)
        import_checkpoint(hf, folder / f"imported-{step}")
        place = folder / "checkpoints" / f"iter_{step:07d}"
        place.parent.mkdir(exist_ok=True)
        (folder / f"imported-{step}" / "release").rename(place)
        (folder / f"imported-{step}" / "hf").replace(place.parent / f"hf-{step}")
    place.with_name(f"hf-{step}").rename(place.with_name("hf"))
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(max(steps)))
    return folder
