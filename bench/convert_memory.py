"""Peak memory and time of a conversion in both directions, beside ``cp -r`` of the same bytes.

    python bench/convert_memory.py [--shape 8b|3b] [--folder runs/convert_memory]

Writes a checkpoint of generated bf16 weights shaped like Llama-3-8B (16 GB; or Llama-3.2-3B, 7 GB, where the disk
is short), copies it with ``cp -r``, imports it and exports the import, each in a process of its own. Peak memory is
the process's largest resident set as the kernel counts it. The bound is 2 x the largest tensor + 1 GB, and 3 x the
time of ``cp -r`` with its ``sync``. Files are dropped from the page cache before each is read. Everything in the
folder is removed at the end. The exit status says whether both bounds held.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "3b": {
        "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
        "num_attention_heads": 24, "num_key_value_heads": 8, "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip
COMMON = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
    "rope_theta": 5e5, "max_position_embeddings": 8192,
}  # fmt: skip
GB = 1e9
SHARD = 5_000_000_000


@dataclass(frozen=True)
class Run:
    """What a command took: wall-clock seconds, and its largest resident set in bytes."""

    seconds: float
    peak: int


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama, in the order of the file."""
    hidden, ffn = shape["hidden_size"], shape["intermediate_size"]
    kv = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        for name, size in (
            ("self_attn.q_proj", (hidden, hidden)), ("self_attn.k_proj", (kv, hidden)),
            ("self_attn.v_proj", (kv, hidden)), ("self_attn.o_proj", (hidden, hidden)),
            ("mlp.gate_proj", (ffn, hidden)), ("mlp.up_proj", (ffn, hidden)), ("mlp.down_proj", (hidden, ffn)),
            ("input_layernorm", (hidden,)), ("post_attention_layernorm", (hidden,)),
        ):  # fmt: skip
            yield f"{at}{name}.weight", size
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (shape["vocab_size"], hidden)


def write_model(folder: Path, shape: dict[str, Any]) -> int:
    """Write the checkpoint in shards of 5 GB; returns the bytes of its largest tensor."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**COMMON, **shape}))
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    room = SHARD
    for name, size in tensors(shape):
        need = 2 * int(np.prod(size))
        if shards[-1] and need > room:
            shards.append([])
            room = SHARD
        shards[-1].append((name, size))
        room -= need
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    noise = _noise()
    for name, members in zip(names, shards, strict=True):
        _write_shard(folder / name, members, noise)
    weight_map = {tensor: name for name, part in zip(names, shards, strict=True) for tensor, _ in part}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
    return max(2 * int(np.prod(size)) for _, size in tensors(shape))


def _noise() -> np.ndarray:
    """64 MB of bf16 numbers around 0.02, bytes that no disk compresses."""
    values = np.random.default_rng(0).normal(0.0, 0.02, 1 << 25).astype(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _write_shard(path: Path, members: list[tuple[str, tuple[int, ...]]], noise: np.ndarray) -> None:
    header, position = {}, 0
    for name, size in members:
        end = position + 2 * int(np.prod(size))
        header[name] = {"dtype": "BF16", "shape": list(size), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for i, (_, size) in enumerate(members):
            left = int(np.prod(size))
            start = 7919 * i % (len(noise) // 2)  # tensors differ
            while left:
                piece = noise[start : start + left]
                file.write(piece.tobytes())
                left -= len(piece)
                start = 0


def run(*command: str | Path) -> Run:
    """Run a command; ends the bench when it fails."""
    start = time.monotonic()
    process = subprocess.Popen([str(word) for word in command])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    return Run(seconds, usage.ru_maxrss * 1024)


def forget(folder: Path) -> None:
    """Write files out and drop them from the page cache, so that reading them reads the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(source: Path, target: Path) -> Run:
    """``cp -r`` and the ``sync`` that a conversion does too; the copy is removed."""
    forget(source)
    taken = run("cp", "-r", source, target)
    start = time.monotonic()
    forget(target)
    seconds = taken.seconds + time.monotonic() - start
    shutil.rmtree(target)
    return Run(seconds, taken.peak)


def convert(kind: str, source: Path, target: Path) -> Run:
    """A conversion in a process of its own."""
    forget(source)
    return run(sys.executable, "-m", "megatron_moo.cli", "convert", kind, source, target)


def main() -> int:
    """Measure both directions and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="8b")
    parser.add_argument("--folder", type=Path, default=Path("runs/convert_memory"))
    args = parser.parse_args()
    folder: Path = args.folder
    if folder.exists():
        raise SystemExit(f"{folder} exists; remove it or give another --folder")
    try:
        return measure(folder, args.shape)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def measure(folder: Path, name: str) -> int:
    """The bench proper; returns the exit status."""
    shape = SHAPES[name]
    total = sum(2 * int(np.prod(size)) for _, size in tensors(shape))
    folder.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < 2.2 * total:
        raise SystemExit(f"{2.2 * total / GB:.0f} GB are needed, {free / GB:.0f} are free: take --shape 3b")
    hf, megatron, back = folder / "hf", folder / "megatron", folder / "back"
    largest = write_model(hf, shape)
    bound = 2 * largest + int(GB)
    print(
        f"{name}: {total / GB:.2f} GB in bf16, largest tensor {largest / GB:.2f} GB, bound {bound / GB:.2f} GB"
    )
    copied = copy(hf, folder / "copy")
    print(f"cp -r    {copied.seconds:7.1f} s", flush=True)
    good = True
    for kind, source, target in (("import", hf, megatron), ("export", megatron, back)):
        took = convert(kind, source, target)
        shutil.rmtree(source)  # an import is whole without what it was made from; the disk may be short
        ratio = took.seconds / copied.seconds
        good &= took.peak < bound and ratio < 3
        print(
            f"{kind}   {took.seconds:7.1f} s, {ratio:.2f} x cp -r, peak memory {took.peak / GB:.2f} GB",
            flush=True,
        )
    written = sum(path.stat().st_size for path in back.glob("*.safetensors"))
    if written < total:
        raise SystemExit(f"the export has {written} bytes of {total}")
    print(f"within both bounds: {'yes' if good else 'NO'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
