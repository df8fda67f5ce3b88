"""Every shipped recipe of examples/slurm fits the machine that its first lines name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from megatron_moo.cli import main
from megatron_moo.models.families import read_model
from megatron_moo.models.families.config import Config
from tests.end_to_end.conftest import ROOT

SLURM = ROOT / "examples" / "slurm"
RECIPES = sorted(path for path in (SLURM / "recipes").glob("*.yaml") if not path.name.startswith("languages"))
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "rope_theta": 500000.0, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "hidden_act": "silu", "attention_bias": False,
}  # fmt: skip
SCALED = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
# config.json as its model publishes it.
PUBLISHED = {
    "llama-3-8b": LLAMA,
    "llama-3.1-8b": LLAMA
    | {"max_position_embeddings": 131072, "rope_scaling": {**SCALED, "rope_type": "llama3"}},
    "qwen3-8b-base": {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096, "head_dim": 128,
        "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 151936, "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
        "attention_dropout": 0.0, "sliding_window": None, "use_sliding_window": False, "max_window_layers": 36,
    },
}  # fmt: skip
PUBLISHED["llama-3.1-8b-20-languages"] = PUBLISHED["llama-3.1-8b"]


def test_all_recipes_of_the_issue_are_there() -> None:
    assert {path.stem for path in RECIPES} == {*PUBLISHED, "gemma-3-1b", "pretrain-1b"}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_it_fits(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert "Not run on real hardware." in text
    command = re.search(r"megatron-moo plan (\S+) --gpus (\d+)", text)
    assert command and ROOT / command[1] == path
    assert main(["plan", str(path), "--gpus", command[2], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    # What is counted exactly: parameters, gradients, optimizer and rows, without any estimate.
    counted = sum(told["bytes"][part] for part in ("parameters", "gradients", "optimizer", "kept_rows"))
    assert told["fits"] and counted < told["bytes"]["total"] <= told["limit_bytes"] == 74 * 2**30
    assert told["slots"] * told["lanes"] >= told["objectives"], "every language has a place in every step"
    # What a recipe says of the wire is what plan computes.
    for said in re.findall(r"between nodes are ([\d.]+) times a ring's bytes", text):
        wire = told["wire_bytes"]
        assert f"{wire['between'] / wire['ring_between']:.1f}" == said
    assert ("a ring's bytes" in text) == (path.stem == "pretrain-1b") and "several times" not in text
    # The manifest that four models share is to be edited, and plan says so.
    shared = "languages: languages-8.yaml" in text
    assert any("names the tokenizer ../checkpoints/model/hf" in note for note in told["notes"]) == shared


def test_manifests_name_the_models_tokenizer_or_the_readme_says_what_to_edit() -> None:
    readme = (SLURM / "README.md").read_text(encoding="utf-8")
    for path in RECIPES:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
        manifest = (SLURM / "recipes" / recipe["languages"]).read_text(encoding="utf-8")
        if (place := recipe.get("pretrained-checkpoint")) is None:
            assert yaml.safe_load(manifest)["tokenizer"]["train"]
            continue
        named = yaml.safe_load(manifest)["tokenizer"]["path"]
        name = Path(place).name
        assert named.replace("/model/", f"/{name}/") == f"{place}/hf"
        assert named == f"{place}/hf" or (name in manifest and "place of `model`" in manifest)
        (row,) = (line for line in readme.splitlines() if f"`{path.name}`" in line and line.strip()[0] == "|")
        assert f"`{place}`" in row and f"`{place}/hf`" in row


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_models_flags_are_what_an_import_writes(name: str) -> None:
    from megatron_moo.convert.recipe_flags import all_flags

    flags = all_flags(read_model(Config(dict(PUBLISHED[name]), name)))
    recipe = yaml.safe_load((SLURM / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {key: recipe.get(key) for key in flags} == flags


def test_twenty_languages_need_tensor_parallelism(capsys: pytest.CaptureFixture[str]) -> None:
    """The reason that the recipe gives: at TP 1 no way to keep rows fits."""
    path = str(SLURM / "recipes" / "llama-3.1-8b-20-languages.yaml")
    flags = ["--tensor-model-parallel-size", "1", "--moo-slots", "3"]
    assert main(["plan", path, "--gpus", "8", "--json", *flags]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["fits"] and not any(choice["fits"] for choice in told["choices"])
