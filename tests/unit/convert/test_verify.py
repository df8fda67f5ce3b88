"""``verify``: exactly the checkpoint that was asked for, the text that was given, and NaN told as NaN."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from megatron_moo.cli import main
from megatron_moo.convert import verify
from megatron_moo.convert.importer import import_checkpoint
from tests.unit.convert import tiny


def _changed(folder: Path, target: Path) -> None:
    """The tiny Llama with other weights."""
    tiny.write(folder)
    save_file({name: tensor * 1.5 for name, tensor in tiny.tensors().items()}, folder / "model.safetensors")
    import_checkpoint(folder, target)


def _logits(out: str) -> tuple[int, float]:
    """Tokens and largest difference."""
    match = re.search(r"logits of (\d+) tokens, largest difference (\S+)", out)
    assert match, out
    return int(match[1]), float(match[2])


@pytest.mark.parametrize("tracker", ["7", None], ids=["another's", "none"])
@pytest.mark.parametrize("name", ["release", "iter_0000003"])
def test_logits_are_of_the_checkpoint_asked_for(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tracker: str | None
) -> None:
    _changed(tmp_path / "other", tmp_path / "changed")
    (imported / "release").rename(imported / "asked")
    (imported / "asked").rename(imported / name)
    shutil.copytree(tmp_path / "changed/release", imported / "iter_0000007")
    path = imported / "latest_checkpointed_iteration.txt"
    path.write_text(tracker) if tracker else path.unlink()

    assert main(["convert", "verify", str(tmp_path / "hf"), str(imported / name), "--logits"]) == 0
    assert _logits(capsys.readouterr().out)[1] < 1e-3
    # The same in one process once more, and a checkpoint of other weights is told.
    asked = ["convert", "verify", str(tmp_path / "hf"), str(imported / "iter_0000007"), "--logits"]
    assert main(asked) == 1
    assert _logits(capsys.readouterr().out)[1] > 1


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    found = Tokenizer(WordLevel({"?": 0, "one": 1, "two": 2, "three": 3}, unk_token="?"))
    found.pre_tokenizer = Whitespace()
    found.save(str(folder / "tokenizer.json"))


def test_the_text_that_was_given_is_compared(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    real = verify.logit_difference

    def spy(hf: Path, checkpoint: Path, tokens: list[int], *more: Any) -> verify.Logits:
        seen.append(tokens)
        return real(hf, checkpoint, tokens, *more)

    monkeypatch.setattr(verify, "logit_difference", spy)
    _tokenizer(tmp_path / "hf")
    (tmp_path / "text").write_text("two one\nthree four", encoding="utf-8")
    asked = ["convert", "verify", str(tmp_path / "hf"), str(imported), "--logits"]

    assert main([*asked, "--text", "one two three"]) == 0
    assert _logits(capsys.readouterr().out)[0] == 3
    assert main([*asked, "--text-file", str(tmp_path / "text")]) == 0
    assert _logits(capsys.readouterr().out)[0] == 4
    assert seen == [[1, 2, 3], [2, 1, 3, 0]]


def test_a_text_without_a_tokenizer_is_an_error(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text").write_text("one", encoding="utf-8")
    asked = ["convert", "verify", str(tmp_path / "hf"), str(imported), "--logits"]
    for more in (["--text", "one"], ["--text-file", str(tmp_path / "text")]):
        assert main([*asked, *more]) == 2
        told = capsys.readouterr().err
        assert "tokenizer.json" in told and "--text" in told


def test_pickled_weights_are_verified_when_allowed(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "hf"
    (folder / "model.safetensors").unlink()
    torch.save(tiny.tensors(), folder / "pytorch_model.bin")
    asked = ["convert", "verify", str(folder), str(imported), "--logits"]
    assert main(asked) == 2
    assert "--allow-pickle" in capsys.readouterr().err
    assert main([*asked, "--allow-pickle"]) == 0
    assert _logits(capsys.readouterr().out)[1] < 1e-3


NAME = "model.layers.1.mlp.up_proj.weight"


def _write(folder: Path, value: float) -> None:
    weights = tiny.tensors()
    weights[NAME][3, 5] = value
    save_file(weights, folder / "model.safetensors")


def test_nan_is_told_as_nan(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _write(tmp_path / "hf", float("nan"))
    assert main(["convert", "verify", str(tmp_path / "hf"), str(imported)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out == [f"nan  {NAME}", "21 tensors, 1 of them differs, largest difference nan"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_the_same_bits_are_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str], value: float) -> None:
    folder = tiny.write(tmp_path / "hf")
    _write(folder, value)
    import_checkpoint(folder, tmp_path / "megatron")
    assert main(["convert", "verify", str(folder), str(tmp_path / "megatron"), "--all"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert f"0.000e+00  {NAME}" in out
    assert len(out) == 22
    assert out[-1] == "21 tensors, largest difference 0.000e+00"


def test_gaps_are_told_in_the_wider_dtype() -> None:
    one = torch.tensor([1.0, float("nan")], dtype=torch.float64)
    assert 0 < verify.largest_gap(one, one + torch.tensor([1e-12, 0.0])) < 1e-11
    other_nan = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert verify.largest_gap(torch.tensor([float("nan")]), other_nan) != 0
    half = torch.tensor([1.0, float("nan"), float("inf")], dtype=torch.bfloat16)
    assert verify.largest_gap(half.float(), half) == 0
