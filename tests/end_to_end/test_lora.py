"""Adapters as a user trains them: on a base checkpoint, interrupted and resumed, merged, and refused."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megatron_moo.convert.lora_cli import add_lora_subcommands
from megatron_moo.errors import MooError
from tests.end_to_end.conftest import Command
from tests.end_to_end.test_train import lines_of, losses_of

LORA = (
    "--pretrained-checkpoint", "base/checkpoints", "--lora-rank", "2", "--lora-targets", "linear_qkv", "linear_fc2",
    "--lora-dropout", "0.1", "--train-iters", "4",
)  # fmt: skip


def held_out(run: Path, step: int) -> dict[str, float]:
    return next(
        line["loss"] for line in lines_of(run) if line.get("event") == "valid" and line["step"] == step
    )


def convert(*words: str) -> int:
    """``megatron-moo convert WORDS`` in this process."""
    parser = argparse.ArgumentParser()
    add_lora_subcommands(parser.add_subparsers())
    args = parser.parse_args(words)
    return args.func(args)


def close(one: dict[str, float], other: dict[str, float]) -> bool:
    return one == pytest.approx(other, rel=1e-6)


@pytest.mark.timeout(600)
def test_adapters_on_a_base(
    command: Command, three_languages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def train(name: str, *flags: str) -> Path:
        done = command("train", "tiny.yaml", "--run-dir", name, *flags, timeout=300)
        assert done.returncode == 0, done.stderr
        return tmp_path / name

    base = train("base", "--train-iters", "2")
    whole = train("whole", *LORA)
    # B starts at zero: the adapted model is the base until its first step.
    assert close(held_out(whole, 0), held_out(base, 2))
    assert not close(held_out(whole, 4), held_out(base, 2))
    steps = [line for line in lines_of(whole) if "event" not in line]
    assert list(steps[0]["moo"]["weights"]) == ["decoder.layers.0", "decoder.layers.1"], (
        "adapters are all that trains"
    )

    train("parts", *LORA, "--exit-interval", "2")
    parts = train("parts", *LORA)
    assert losses_of(parts) == losses_of(whole), "the curve goes on exactly"
    assert held_out(parts, 4) == held_out(whole, 4)

    assert convert("merge-lora", "whole/checkpoints", "merged") == 0
    with pytest.raises(MooError, match="merged: exists and is not empty"):
        convert("merge-lora", "whole/checkpoints", "merged")
    plain = train("plain", "--pretrained-checkpoint", "merged", "--train-iters", "1")
    assert close(held_out(plain, 0), held_out(whole, 4)), "merging changes no loss"

    assert convert("export-lora", "whole/checkpoints", "peft", "--base", "tiny") == 0
    names = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert len(names) == 2 * 2 * 4, "2 layers, 2 factors, q k v and down"
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    with pytest.raises(MooError, match="holds no adapters"):
        convert("export-lora", "base/checkpoints", "peft2")
    assert not (tmp_path / "peft2").exists()


@pytest.mark.timeout(120)
def test_bad_flags_are_one_line(command: Command, three_languages: Path, tmp_path: Path) -> None:
    for flags, message in (
        (("--lora-rank", "0"), "--lora-rank: 0 is not a rank"),
        (("--lora-rank", "4", "--lora-targets", "q_proj"), "--lora-targets: unknown layer 'q_proj'"),
    ):
        refused = command("train", "tiny.yaml", "--run-dir", "never", *flags, timeout=60)
        assert refused.returncode == 2 and message in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
        assert not (tmp_path / "never").exists()
    everything = command("train", "tiny.yaml", "--run-dir", "frozen", "--freeze", ".")
    assert everything.returncode != 0 and "--freeze: '.' freezes every parameter" in everything.stderr
    assert len(everything.stderr.strip().splitlines()) == 1, everything.stderr
