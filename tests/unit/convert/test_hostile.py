"""A checkpoint is foreign: nothing in it may run, climb out of its folder or make us allocate what it claims."""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_moo.convert import safe
from megatron_moo.convert.dist_read import Checkpoint
from megatron_moo.convert.exporter import export_checkpoint, open_target
from megatron_moo.convert.importer import import_checkpoint, open_source
from megatron_moo.convert.unpickle import load_metadata, load_object
from megatron_moo.errors import MooError
from megatron_moo.models.families import read_model
from megatron_moo.models.families.config import Config
from megatron_moo.models.families.model import Model
from tests.unit.convert import tiny

LONG = "a" * 10_000
SHARD = "model-00001-of-00002.safetensors"
HOSTILE_NAMES: tuple[Any, ...] = (
    "../" + SHARD, "/etc/passwd", "a/../../" + SHARD, "nul\0.safetensors", "dir\\" + SHARD,
    "https://example.org/" + SHARD, "", [SHARD], "missing.safetensors", "/dev/zero", LONG + ".safetensors", None, 7,
    {"a": 1},
    "model.safetensors.index.json", ".hidden.safetensors",
)  # fmt: skip


@pytest.fixture
def no_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a shard is opened."""

    def refuse(file: Path) -> dict[str, Any]:
        raise AssertionError(f"{file} was opened")

    monkeypatch.setattr(safe, "read_header", refuse)


@pytest.mark.usefixtures("no_open")
@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: repr(name)[:30])
def test_a_hostile_shard_name_is_refused_before_any_file_is_opened(tmp_path: Path, name: Any) -> None:
    folder = tiny.write(tmp_path / "hf", shards=2)
    index = folder / safe.INDEX
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(content))

    with pytest.raises(MooError, match=r"index\.json"):
        open_source(folder)


@pytest.mark.usefixtures("no_open")
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_shard_that_is_no_regular_file_is_refused(tmp_path: Path, kind: str) -> None:
    folder = tiny.write(tmp_path / "hf", shards=2)
    shard = folder / SHARD
    shard.rename(tmp_path / "elsewhere.safetensors")
    if kind == "link":
        shard.symlink_to(tmp_path / "elsewhere.safetensors")
    elif kind == "pipe":
        os.mkfifo(shard)
    else:
        shard.mkdir()

    with pytest.raises(MooError, match="link|regular"):
        open_source(folder)


def test_a_tensor_listed_twice_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf", shards=2)
    index = folder / safe.INDEX
    index.write_text(
        index.read_text().replace('"weight_map": {', f'"weight_map": {{"model.norm.weight": "{SHARD}", ', 1)
    )
    with pytest.raises(MooError, match="listed twice"):
        open_source(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf", shards=2)
    (folder / "model-00002-of-00002.safetensors").write_bytes((folder / SHARD).read_bytes())
    with pytest.raises(MooError, match="is also in"):
        open_source(folder)


@pytest.mark.usefixtures("no_open")
def test_one_file_beside_an_index_of_shards_is_refused(tmp_path: Path) -> None:
    folder = tiny.write(tiny.write(tmp_path / "hf"), shards=2)
    with pytest.raises(MooError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        open_source(folder)


def test_an_index_of_the_one_file_is_read(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf")
    weight_map = dict.fromkeys(tiny.tensors(), safe.SINGLE)
    (folder / safe.INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert open_source(folder).model.layers == 2


def _header(folder: Path, change: Any) -> None:
    """Rewrite the header of the only shard."""
    path = folder / safe.SINGLE
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = change(json.loads(data[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def _set(field: str, value: Any) -> Any:
    def change(header: dict[str, Any]) -> dict[str, Any]:
        header["model.norm.weight"][field] = value
        return header

    return change


HEADERS = {
    "huge shape": _set("shape", [2**62, 2**62]),
    "negative shape": _set("shape", [-16]),
    "fractional shape": _set("shape", [1.5]),
    "other shape": _set("shape", [4, 4]),
    "offset beyond the end": _set("data_offsets", [10**12, 10**12 + 64]),
    "offsets reversed": _set("data_offsets", [64, 0]),
    "overlap": _set("data_offsets", [0, 64]),
    "unknown dtype": _set("dtype", "F4"),
    "dtype is a list": _set("dtype", ["F32"]),
    "integers": _set("dtype", "I32"),
    "not a mapping": lambda header: [header],
    "entry not a mapping": lambda header: {**header, "model.norm.weight": 3},
    "not JSON": lambda header: b"{nonsense",
    "not text": lambda header: b"\xff\xfe\xff\xfe",
    "deep": lambda header: b'{"a":' * 50_000,
    "tensor missing": lambda header: {k: v for k, v in header.items() if k != "model.norm.weight"},
    "tensor too many": lambda header: {
        **header,
        "model.backdoor.weight": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]},
    },
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_malformed_header_is_refused_naming_the_file(tmp_path: Path, kind: str) -> None:
    folder = tiny.write(tmp_path / "hf")
    _header(folder, HEADERS[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.monotonic()
    with pytest.raises(MooError) as raised:
        import_checkpoint(folder, tmp_path / "out")
    assert str(folder) in str(raised.value)
    assert time.monotonic() - start < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes
    assert not (tmp_path / "out").exists()


def test_a_thousand_damaged_headers_never_crash(tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "hf") / safe.SINGLE
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    dice = random.Random(0)
    refused = 0
    for _ in range(1000):
        spoilt = bytearray(data)
        for _ in range(dice.randint(1, 8)):
            spoilt[dice.randrange(8 + length)] = dice.randrange(256)
        path.write_bytes(spoilt[: dice.choice([len(spoilt), dice.randrange(len(spoilt))])])
        try:
            safe.read_header(path)
        except MooError:
            refused += 1
    assert refused > 500


CONFIGS = {
    "hidden 2^40": {"hidden_size": 2**40},
    "layers -1": {"num_hidden_layers": -1},
    "layers a million": {"num_hidden_layers": 10**6},
    "vocabulary of another size": {"vocab_size": 129},
    "NaN eps": {"rms_norm_eps": float("nan")},
    "eps 0": {"rms_norm_eps": 0.0},
    "infinite theta": {"rope_theta": float("inf")},
    "heads that do not divide": {"num_attention_heads": 5},
    "groups that do not divide": {"num_key_value_heads": 3},
    "hidden is text": {"hidden_size": "16"},
    "hidden is true": {"hidden_size": True},
    "tied is text": {"tie_word_embeddings": "no"},
    "another activation": {"hidden_act": "gelu"},
    "biases": {"attention_bias": True},
    "MLP biases": {"mlp_bias": True},
    "unknown rope": {"rope_scaling": {"rope_type": "ntk-by-parts", "factor": 2.0}},
    "unknown rope parameter": {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "secret": 3}},
    "rope is a list": {"rope_scaling": [1, 2]},
    "rope lacks its factor": {"rope_scaling": {"rope_type": "linear"}},
    "a rope without sense": {"rope_parameters": {"rope_theta": -1.0}},
    "quantised": {"quantization_config": {"bits": 4}},
    "unknown key": {"attention_temperature": 0.7},
    "unknown architecture": {"architectures": ["EvilForCausalLM"]},
    "two architectures": {"architectures": ["LlamaForCausalLM", "Qwen2ForCausalLM"]},
    "no architecture": {"architectures": None},
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_config_that_we_do_not_follow_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = tiny.write(tmp_path / "hf", **CONFIGS[kind])
    with pytest.raises(MooError) as raised:
        import_checkpoint(folder, tmp_path / "out")
    key = next(iter(CONFIGS[kind]))
    assert key.split("_")[0].lower()[:5] in str(raised.value).lower() or "128" in str(raised.value)
    assert not (tmp_path / "out").exists()


MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "num_local_experts": 4096, "num_experts_per_tok": 2,
    "num_hidden_layers": 1024,
}  # fmt: skip


def test_sizes_that_multiply_are_refused_before_names_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.write(tmp_path / "hf", **MIXTRAL)
    names = []
    real = Model.names
    monkeypatch.setattr(Model, "names", lambda *args: names.append(1) or real(*args))
    start = time.monotonic()
    with pytest.raises(MooError, match=r"asks for 12,\d{3},\d{3} tensors and the files hold 21"):
        open_source(folder)
    assert time.monotonic() - start < 1
    assert len(names) < 50


@pytest.mark.parametrize("experts", [{}, {"num_local_experts": 8}], ids=["llama", "mixtral"])
def test_the_count_is_that_of_the_names(experts: dict[str, Any]) -> None:
    more = {**MIXTRAL, "num_hidden_layers": 3, **experts} if experts else {}
    model = read_model(Config({**tiny.CONFIG, **more}))
    assert model.hf_count() == len(model.hf_shapes())


def test_a_key_that_the_user_vouches_for_is_let_through(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf", attention_temperature=0.7)
    assert open_source(folder, ignore=["attention_temperature"]).model.family == "llama"


def test_code_named_by_the_config_is_never_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    canary = tmp_path / "canary"
    folder = tiny.write(
        tmp_path / "hf", auto_map={"AutoModelForCausalLM": "evil.Evil"}, trust_remote_code=True,
    )  # fmt: skip
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')")
    monkeypatch.syspath_prepend(str(folder))
    import_checkpoint(folder, tmp_path / "out")
    export_checkpoint(tmp_path / "out", tmp_path / "back")
    assert not canary.exists()
    assert not list((tmp_path / "out").rglob("*.py")) + list((tmp_path / "back").rglob("*.py"))


class Canary:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_pickle_in_metadata_never_runs(tmp_path: Path) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(pickle.dumps(Canary(tmp_path / "canary")))
    with pytest.raises(MooError, match="open"):
        load_metadata(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "module", ["os", "builtins", "subprocess", "torch.hub", "torch.distributed.checkpoint.api", "numpy"]
)
def test_names_outside_the_list_are_refused(tmp_path: Path, module: str) -> None:
    path = tmp_path / ".metadata"
    path.write_bytes(b"c" + module.encode() + b"\neval\n.")
    with pytest.raises(MooError, match="eval"):
        load_metadata(path)


@pytest.mark.parametrize("name", ["common.pt", "object"])
def test_a_pickle_beside_the_tensors_never_runs(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save({"args": Canary(tmp_path / "canary")}, path)
    with pytest.raises(MooError, match="open"):
        load_object(path.read_bytes(), str(path))
    assert not (tmp_path / "canary").exists()


def test_a_class_of_megatron_becomes_an_inert_record(tmp_path: Path) -> None:
    import sys
    import types

    module = types.ModuleType("megatron.made_up")
    ran = []

    class Thing:
        def __setstate__(self, state: Any) -> None:
            ran.append(state)

    Thing.__module__, Thing.__qualname__ = "megatron.made_up", "Thing"
    module.Thing = Thing  # type: ignore[attr-defined]
    thing = Thing()
    thing.value = 3  # type: ignore[attr-defined]
    sys.modules["megatron.made_up"] = module
    try:
        torch.save({"thing": thing}, tmp_path / "common.pt")
        found = load_object((tmp_path / "common.pt").read_bytes(), "common.pt")
    finally:
        del sys.modules["megatron.made_up"]
    assert type(found["thing"]).__name__ == "Inert"
    assert ran == []


def test_pickled_weights_need_a_flag_and_never_run(tmp_path: Path) -> None:
    folder = tiny.write(tmp_path / "hf")
    (folder / safe.SINGLE).unlink()
    torch.save(tiny.tensors(), folder / "pytorch_model.bin")
    with pytest.raises(MooError, match="--allow-pickle"):
        open_source(folder)
    assert import_checkpoint(folder, tmp_path / "out", allow_pickle=True).family == "llama"

    torch.save({**tiny.tensors(), "x": Canary(tmp_path / "canary")}, folder / "pytorch_model.bin")
    with pytest.raises(MooError, match="weights_only"):
        open_source(folder, allow_pickle=True)
    assert not (tmp_path / "canary").exists()


def test_a_data_file_that_climbs_out_is_refused(imported: Path) -> None:
    path = imported / "release" / ".metadata"
    data = path.read_bytes()
    assert b"__0_0.distcp" in data
    path.write_bytes(data.replace(b"__0_0.distcp", b"../../passwd"))
    with pytest.raises(MooError, match="plain file name"):
        Checkpoint(imported / "release")


def test_a_truncated_data_file_is_refused(imported: Path, tmp_path: Path) -> None:
    path = imported / "release" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MooError, match="distcp"):
        export_checkpoint(imported, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("text", ["", "12x", "../../etc", "999"])
def test_a_tracker_that_names_nothing_is_refused(imported: Path, text: str) -> None:
    (imported / "latest_checkpointed_iteration.txt").write_text(text)
    with pytest.raises(MooError, match="latest_checkpointed_iteration"):
        open_target(imported)
