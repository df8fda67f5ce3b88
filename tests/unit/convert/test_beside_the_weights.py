"""What lies beside the weights comes back byte for byte, and what is not a conversion of ours is not replaced."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_moo.convert import exporter, importer
from megatron_moo.convert.exporter import export_checkpoint
from megatron_moo.convert.importer import import_checkpoint
from megatron_moo.errors import MooError
from tests.unit.convert import tiny

# Odd bytes on purpose: no file may be parsed and written anew.
FILES = {
    "generation_config.json": b'{"eos_token_id":2,\r\n\t"temperature": 0.70 }',
    "tokenizer.json": b'{"version": "1.0"   }\n\n',
    "tokenizer_config.json": '{"bos_token": "¿"}'.encode(),
    "tokenizer.model": bytes(range(256)) * 2,
    "special_tokens_map.json": b"{}",
    "added_tokens.json": b'{"a":\n1}',
    "vocab.json": b"{}\n",
    "merges.txt": b"a b\r\n",
    "chat_template.jinja": "{{ x }}\u2028".encode(),
    "additional_chat_templates/tool_use.jinja": b"{% if tools %}\n{% endif %}",
    "additional_chat_templates/rag-2.jinja": b"",
    "processor_config.json": b"{ }",
    "preprocessor_config.json": b"{  }",
}


def _write(folder: Path) -> Path:
    tiny.write(folder)
    (folder / "additional_chat_templates").mkdir()
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    return folder


def test_tokenizer_and_generation_files_come_back_byte_for_byte(tmp_path: Path) -> None:
    folder = _write(tmp_path / "hf")
    (folder / "additional_chat_templates/evil.py").write_text("raise SystemExit")
    import_checkpoint(folder, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    assert {name: (tmp_path / "back" / name).read_bytes() for name in FILES} == FILES
    assert not list((tmp_path / "megatron").rglob("*.py")) + list((tmp_path / "back").rglob("*.py"))


def test_what_transformers_saves_of_a_tokenizer_comes_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    folder = tiny.write(tmp_path / "hf")
    ours = set(os.listdir(folder))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"?": 0, "a": 1}, unk_token="?")), unk_token="?"
    )
    tokenizer.chat_template = {"default": "{{ a }}", "tool_use": "{{ b }}"}
    tokenizer.save_pretrained(folder)
    GenerationConfig(max_length=7).save_pretrained(folder)
    saved = [
        path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name not in ours
    ]
    assert Path("additional_chat_templates/tool_use.jinja") in saved
    import_checkpoint(folder, tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    for name in saved:
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes(), name


def test_templates_of_a_cache_are_followed(tmp_path: Path) -> None:
    folder = tmp_path / "models--x/snapshots/abc"
    _write(folder)
    (tmp_path / "models--x/blobs").mkdir()
    template = folder / "additional_chat_templates/tool_use.jinja"
    template.rename(tmp_path / "models--x/blobs/0f")
    template.symlink_to("../../../blobs/0f")
    import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out/hf/additional_chat_templates/tool_use.jinja").is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_templates_that_are_links_out_are_refused(tmp_path: Path, kind: str) -> None:
    folder = _write(tmp_path / "hf")
    place = folder / "additional_chat_templates"
    if kind == "folder":
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "secret").write_text("x")
        (place / "x.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(MooError, match=r"link out of|not a folder"):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_over_the_limit_is_told(
    imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _write(tmp_path / "with files")
    monkeypatch.setattr(importer, "_SIDE_BYTES", 500)
    with pytest.raises(MooError, match=r"tokenizer\.model.*512 bytes.*500"):
        import_checkpoint(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()

    monkeypatch.setattr(exporter, "write_shards", None)  # told before anything is written
    with pytest.raises(MooError, match=r"tokenizer\.model.*512 bytes.*500"):
        export_checkpoint(imported, tmp_path / "back", like=folder)


def test_overwrite_keeps_a_folder_of_the_users_own(imported: Path, tmp_path: Path) -> None:
    own = tiny.write(tmp_path / "own")
    with pytest.raises(MooError, match="no conversion"):
        export_checkpoint(imported, own, overwrite=True)
    assert (own / "model.safetensors").exists()

    recipe = tmp_path / "recipe"
    recipe.mkdir()
    (recipe / "model.yaml").write_text("x: 1")
    with pytest.raises(MooError, match="no conversion"):
        import_checkpoint(tmp_path / "hf", recipe, overwrite=True)
    assert (recipe / "model.yaml").exists()


def test_overwrite_replaces_what_we_made(imported: Path, tmp_path: Path) -> None:
    for _ in range(2):
        export_checkpoint(imported, tmp_path / "back", overwrite=True)
        import_checkpoint(tmp_path / "hf", imported, overwrite=True)
    assert (tmp_path / "back/model.safetensors").exists() and (imported / "release/.metadata").exists()


def test_the_folder_of_like_is_never_the_target(imported: Path, tmp_path: Path) -> None:
    export_checkpoint(imported, tmp_path / "back")
    shutil.rmtree(imported / "hf")
    with pytest.raises(MooError, match="would be read"):
        export_checkpoint(imported, tmp_path / "back", like=tmp_path / "back", overwrite=True)
    assert (tmp_path / "back/model.safetensors").exists()


def _in_two_dtypes(folder: Path, name: str) -> Path:
    tiny.write(folder)
    weights = tiny.tensors()
    weights[name] = weights[name].to(torch.bfloat16)
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.layers.1.self_attn.k_proj.weight"]
)
def test_layers_that_differ_in_dtype_are_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(MooError) as raised:
        import_checkpoint(_in_two_dtypes(tmp_path / "hf", name), tmp_path / "out")
    told = str(raised.value)
    assert f"{name} is bfloat16" in told
    other = name.replace("layers.1", "layers.0").replace("k_proj", "q_proj")
    assert f"{other} is float32" in told
    assert "{layer}" not in told


def test_tensors_of_different_dtypes_keep_them(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    import_checkpoint(_in_two_dtypes(tmp_path / "hf", "model.norm.weight"), tmp_path / "megatron")
    export_checkpoint(tmp_path / "megatron", tmp_path / "back")
    before, after = (load_file(tmp_path / side / "model.safetensors") for side in ("hf", "back"))
    assert {name: t.dtype for name, t in before.items()} == {name: t.dtype for name, t in after.items()}
    assert json.loads((tmp_path / "back/config.json").read_text())["hidden_size"] == 16
