"""Conversion without a process group: bits, shards, interruptions, and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from megatron_moo.cli import main
from megatron_moo.convert import exporter, importer
from megatron_moo.convert.exporter import export_checkpoint
from megatron_moo.convert.importer import import_checkpoint
from megatron_moo.errors import MooError
from megatron_moo.models.families.extras import from_spec, to_spec
from tests.unit.convert import tiny


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


@pytest.mark.parametrize("shards", [1, 3])
def test_there_and_back_in_shards(tmp_path: Path, shards: int) -> None:
    import_checkpoint(tiny.write(tmp_path / "hf", shards), tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", shard_bytes=6000)

    after = loaded(tmp_path / "back")
    assert after.keys() == tiny.tensors().keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in tiny.tensors().items())
    files = list((tmp_path / "back").glob("*.safetensors"))
    index = json.loads((tmp_path / "back/model.safetensors.index.json").read_text())
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    assert index["metadata"]["total_size"] == sum(t.numel() * 4 for t in after.values())
    assert importer.open_source(tmp_path / "back").model.layers == 2


def test_queries_of_a_group_lie_beside_its_key_and_value(tmp_path: Path) -> None:
    from megatron_moo.convert.dist_read import Checkpoint

    import_checkpoint(tiny.write(tmp_path / "hf"), tmp_path / "megatron")
    whole = Checkpoint(tmp_path / "megatron/release").read(
        "decoder.layers.self_attention.linear_qkv.weight", (1,)
    )
    q, k, v = (tiny.tensors()[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv")
    # Heads of 4 rows: two queries, a key and a value, twice.
    wanted = [q[0:8], k[0:4], v[0:4], q[8:16], k[4:8], v[4:8]]
    assert torch.equal(whole, torch.cat(wanted))


@pytest.mark.parametrize("what", ["import", "export"])
def test_an_interrupted_conversion_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    folder = tiny.write(tmp_path / "hf")
    if what == "export":
        import_checkpoint(folder, tmp_path / "megatron")
    calls: list[int] = []

    def failing(real: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(1)
            if len(calls) == 5:
                raise KeyboardInterrupt
            return real(*args)

        return call

    module = importer if what == "import" else exporter
    name = "make_part" if what == "import" else "read_parts"
    monkeypatch.setattr(module, name, failing(getattr(module, name)))
    convert, source = (
        (import_checkpoint, folder) if what == "import" else (export_checkpoint, tmp_path / "megatron")
    )
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    assert len(calls) == 5
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious").write_text("x")
    with pytest.raises(MooError, match="not empty"):
        import_checkpoint(folder, tmp_path / "out")
    assert (tmp_path / "out/precious").read_text() == "x"


def test_a_tied_output_layer_that_differs_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf", tie_word_embeddings=True)
    with pytest.raises(MooError, match="the config ties them"):
        import_checkpoint(folder, tmp_path / "out")


def test_exporting_with_the_config_of_another_model_is_refused(tmp_path: Path) -> None:
    import_checkpoint(tiny.write(tmp_path / "hf"), tmp_path / "megatron")
    other = tiny.write(tmp_path / "other", rms_norm_eps=1e-6)
    with pytest.raises(MooError, match="layernorm_epsilon"):
        export_checkpoint(tmp_path / "megatron", tmp_path / "back", like=other)


def test_verify_tells_by_its_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tiny.write(tmp_path / "hf"))
    assert main(["convert", "import", folder, str(tmp_path / "megatron")]) == 0
    assert main(["convert", "verify", folder, str(tmp_path / "megatron")]) == 0
    assert "21 tensors, largest difference 0.000e+00" in capsys.readouterr().out

    weights = tiny.tensors()
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] += 0.5
    from safetensors.torch import save_file

    save_file(weights, tmp_path / "hf/model.safetensors")
    assert main(["convert", "verify", folder, str(tmp_path / "megatron")]) == 1
    assert "5.000e-01  model.layers.1.mlp.up_proj.weight" in capsys.readouterr().out


def test_a_mistake_is_one_line_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "import", str(tmp_path), str(tmp_path / "out")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_model_yaml_is_a_piece_of_a_recipe(tmp_path: Path) -> None:
    import_checkpoint(tiny.write(tmp_path / "hf"), tmp_path / "megatron")
    flags = yaml.safe_load((tmp_path / "megatron/model.yaml").read_text())
    assert (flags["num-layers"], flags["hidden-size"], flags["kv-channels"]) == (2, 16, 4)
    assert flags["norm-epsilon"] == 1e-5
    assert "spec" not in flags


def test_settings_of_ours_survive_the_spec_flag() -> None:
    given = {"vocab": 100, "rope": {"base": 1e4, "type": "linear", "factor": 2.0}, "logit_softcap": 30.0}
    found = from_spec(to_spec("gemma2", given))
    assert found is not None
    assert (found.family, found.vocab, found.rope, found.logit_softcap) == ("gemma2", *given.values())
    assert from_spec(["local"]) is None
    with pytest.raises(MooError, match="unknown setting"):
        from_spec(["megatron_moo", "gemma2", "secret=1"])
