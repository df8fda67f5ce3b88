"""Links, pipes, archives and claims of size: what a stranger's folder holds beside its shards."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import zipfile
from pathlib import Path

import pytest
import torch

from megatron_moo.convert import safe
from megatron_moo.convert.dist_read import Checkpoint
from megatron_moo.convert.exporter import export_checkpoint, open_target
from megatron_moo.convert.importer import import_checkpoint, open_source
from megatron_moo.convert.unpickle import load_object
from megatron_moo.convert.verify import text_tokens, transformers_logits
from megatron_moo.errors import MooError
from tests.unit.convert import tiny


def _spoil(path: Path, kind: str, elsewhere: Path) -> None:
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        elsewhere.write_text("{}")
        path.symlink_to(elsewhere)


KINDS = ("link", "pipe", "folder", "device")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", safe.INDEX, safe.SINGLE, "tokenizer.json", "README.md"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    folder = tiny.write(tmp_path / "hf")
    _spoil(folder / name, kind, tmp_path / "secret")
    with pytest.raises(MooError, match=r"link out of|not a regular") as raised:
        import_checkpoint(folder, tmp_path / "out")
    assert name in str(raised.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["release/.metadata", "release/metadata.json", "release/common.pt", "release/__0_0.distcp",
             "latest_checkpointed_iteration.txt", "hf/config.json", "hf/tokenizer.json"],
)  # fmt: skip
def test_a_megatron_file_that_is_none_is_refused(
    imported: Path, tmp_path: Path, name: str, kind: str
) -> None:
    _spoil(imported / name, kind, tmp_path / "secret")
    with pytest.raises(MooError, match=r"link out of|not a regular"):
        export_checkpoint(imported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_links_of_a_cache_are_followed(tmp_path: Path) -> None:
    real = tiny.write(tmp_path / "models--x/snapshots/abc")
    (tmp_path / "models--x/blobs").mkdir()
    for path in list(real.iterdir()):
        path.rename(tmp_path / "models--x/blobs" / path.name)
        path.symlink_to(Path("../../blobs") / path.name)
    import_checkpoint(real, tmp_path / "out")
    assert not (tmp_path / "out/hf/config.json").is_symlink()


def test_a_tokenizer_that_is_a_link_is_not_read_for_logits(tmp_path: Path) -> None:
    _spoil(tmp_path / "tokenizer.json", "link", tmp_path / "secret")
    with pytest.raises(MooError, match="link out of"):
        text_tokens(tmp_path, "text", 10)


def test_an_adapter_that_names_another_model_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/elsewhere"}))
    with pytest.raises(MooError, match="adapter_config"):
        transformers_logits(folder, [1, 2])


def test_nested_code_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``auto_map`` in the config, the tokenizer and the generation config; transformers loads the export too."""
    canary, auto = tmp_path / "canary", {"AutoModelForCausalLM": "evil.E", "AutoConfig": "evil.E"}
    folder = tiny.write(tmp_path / "hf", auto_map=auto, trust_remote_code=True, custom_pipelines={})
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "generation_config.json").write_text(json.dumps({"custom_generate": "evil", "auto_map": auto}))
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate/generate.py").write_text(f"open({str(canary)!r}, 'w')")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["evil.E", None]}, "nested": {"auto_map": auto}})
    )
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    import_checkpoint(folder, tmp_path / "out")
    export_checkpoint(tmp_path / "out", tmp_path / "back")
    assert transformers_logits(tmp_path / "back", [1, 2, 3]).shape == (3, 128)
    assert not canary.exists()
    assert not list((tmp_path / "out").rglob("*.py")) + list((tmp_path / "back").rglob("*.py"))


def test_a_nested_config_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf", text_config={"auto_map": {"AutoModel": "evil.E"}})
    with pytest.raises(MooError, match="text_config"):
        open_source(folder)


def _bomb(size: int) -> bytes:
    """An object as torch saves it, its members compressed: a few kilobytes that become ``size`` bytes."""
    plain, packed = io.BytesIO(), io.BytesIO()
    torch.save([{"args": "x" * size}], plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    return packed.getvalue()


def test_a_compressed_archive_is_refused(imported: Path) -> None:
    data = _bomb(50_000_000)
    assert len(data) < 200_000
    with pytest.raises(MooError, match="compressed member"):
        load_object(data, "common.pt")
    (imported / "release/common.pt").write_bytes(data)
    with pytest.raises(MooError, match="compressed member"):
        open_target(imported)


@pytest.mark.parametrize("size", [(2**40, 2**40), (2**34,), (-1, 16), (2**62, 2**62, 2**62)])
def test_a_claim_that_the_files_cannot_hold_is_refused(imported: Path, size: tuple[int, ...]) -> None:
    path = imported / "release/.metadata"
    metadata = pickle.loads(path.read_bytes())  # our own, written above
    metadata.state_dict_metadata["embedding.word_embeddings.weight"].size = size
    path.write_bytes(pickle.dumps(metadata))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MooError, match=r"metadata.*word_embeddings"):
        Checkpoint(imported / "release")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_chunks_that_overlap_or_leave_holes_are_refused(imported: Path, tmp_path: Path) -> None:
    path = imported / "release/.metadata"
    metadata = pickle.loads(path.read_bytes())  # our own, written above
    chunk = metadata.state_dict_metadata["decoder.layers.mlp.linear_fc2.weight"].chunks[1]
    for index in list(metadata.storage_data):
        if index.fqn.endswith("linear_fc2.weight") and tuple(index.offset) == (1, 0, 0):
            metadata.storage_data[type(index)(index.fqn, torch.Size((0, 1, 0)))] = metadata.storage_data.pop(
                index
            )
    chunk.offsets = torch.Size((0, 1, 0))
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(MooError, match="linear_fc2"):
        export_checkpoint(imported, tmp_path / "back")


@pytest.mark.parametrize("key", ["_model_name_or_path", "_some_note"])
def test_keys_with_an_underscore_are_notes(tmp_path: Path, key: str) -> None:
    folder = tiny.write(tmp_path / "hf", **{key: "SmolLM2 135M"})
    assert open_source(folder).model.family == "llama"
