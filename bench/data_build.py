"""Tokenisation speed beside Megatron-LM's tools/preprocess_data.py: same file, tokenizer and workers, same
run.

MEGATRON_LM=CHECKOUT python bench/data_build.py [--megabytes 30] [--workers 2] [--repeats 3]

Without MEGATRON_LM only our own speed is measured, and that is said. The two outputs are compared byte for
byte.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_input(path: Path, megabytes: float) -> None:
    """JSONL of articles from examples/udhr, repeated in rotation until the size is reached."""
    documents = [
        text
        for file in sorted((ROOT / "examples/udhr/train").glob("*.txt"))
        for text in file.read_text().split("\n\n")
    ]
    with path.open("w", encoding="utf-8") as file:
        number = 0
        while file.tell() < megabytes * 1e6:
            text = documents[number % len(documents)] + f"\n{number}"
            file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            number += 1


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE of 8,000 pieces in Hugging Face's format, trained on examples/udhr."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train([str(f) for f in (ROOT / "examples/udhr/train").glob("*.txt")], trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>").save_pretrained(str(folder))


def timed(script: Path, flags: list[str], paths: list[str]) -> float:
    """Wall seconds of one run of a script, start-up included."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKENIZERS_PARALLELISM": "false"}
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(script), *flags], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - begin


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    theirs = os.environ.get("MEGATRON_LM")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_input(folder / "in.jsonl", args.megabytes)
        make_tokenizer(folder / "tokenizer")
        flags = [
            "--input",
            str(folder / "in.jsonl"),
            "--tokenizer-type",
            "HuggingFaceTokenizer",
            "--append-eod",
        ]
        flags += ["--tokenizer-model", str(folder / "tokenizer"), "--workers", str(args.workers)]
        times: dict[str, list[float]] = {"ours": [], "Megatron-LM": []}
        for _ in range(args.repeats):
            ours = [*flags, "--output-prefix", str(folder / "ours")]
            times["ours"].append(timed(ROOT / "tools/preprocess_data.py", ours, [str(ROOT)]))
            if theirs:
                other = [*flags, "--output-prefix", str(folder / "theirs"), "--log-interval", "1000000"]
                times["Megatron-LM"].append(timed(Path(theirs) / "tools/preprocess_data.py", other, []))
        for who, seconds in times.items():
            if seconds:
                middle = statistics.median(seconds)
                speed = args.megabytes / middle
                print(f"{who}: {middle:.1f} s, {speed:.2f} MB/s, {args.workers} workers, start-up included")
        if not theirs:
            print("Megatron-LM's preprocess_data.py was not measured: MEGATRON_LM names no checkout")
            return
        for suffix in ("bin", "idx"):
            same = filecmp.cmp(
                folder / f"ours_text_document.{suffix}", folder / f"theirs_text_document.{suffix}", False
            )
            print(f".{suffix}: {'the same bytes' if same else 'DIFFERENT bytes'}")
        ratio = statistics.median(times["Megatron-LM"]) / statistics.median(times["ours"])
        print(f"ratio (Megatron-LM / ours): {ratio:.2f}")


if __name__ == "__main__":
    main()
