"""What ``tools/preprocess_data.py`` does: one JSONL to Megatron .bin/.idx pairs, with the flags of
Megatron-LM's script."""

from __future__ import annotations

import argparse
import glob
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.data.encode import Encoded, Job
from megatron_moo.data.indexed import IndexedWriter, bin_path, idx_path, token_dtype
from megatron_moo.data.manifest import Reading
from megatron_moo.data.pool import EncodePool
from megatron_moo.data.sources import kind_of, read_blocks
from megatron_moo.data.terminal import Bar
from megatron_moo.data.tokenizers import Tokenizer, make_tokenizer
from megatron_moo.errors import MooError

TOKENIZERS = {
    "HuggingFaceTokenizer": "hf",
    "SentencePieceTokenizer": "sentencepiece",
    "GPTSentencePieceTokenizer": "sentencepiece",
    "Llama2Tokenizer": "sentencepiece",
    "ByteTokenizer": "byte",
}


def parser() -> argparse.ArgumentParser:
    """Megatron-LM's flags that concern text for GPT models; the others are refused by name."""
    result = argparse.ArgumentParser(description="tokenise JSONL to Megatron's .bin/.idx")
    result.add_argument(
        "--input", required=True, help="JSONL (.gz, .zst), text or Parquet; may hold a pattern"
    )
    result.add_argument(
        "--json-keys", nargs="+", default=["text"], help="keys to take; one pair of files for each"
    )
    result.add_argument("--output-prefix", type=Path, required=True)
    result.add_argument("--tokenizer-type", required=True, help=", ".join(TOKENIZERS))
    result.add_argument("--tokenizer-model", help="folder (HuggingFace) or .model file (SentencePiece)")
    result.add_argument(
        "--tokenizer-hf-no-include-special-tokens",
        action="store_true",
        help="leave out what a Hugging Face tokenizer puts around every text, such as <s>",
    )
    result.add_argument("--append-eod", action="store_true", help="end each document with the eod id")
    result.add_argument("--workers", type=int, required=True)
    result.add_argument("--partitions", type=int, default=1, help="accepted; the input is one stream here")
    result.add_argument(
        "--keep-sequential-samples", action="store_true", help="accepted; order is always kept"
    )
    result.add_argument("--log-interval", type=int, default=1000, help="accepted; progress is by bytes here")
    result.add_argument("--skip-budget", type=int, default=0, help="bad lines to skip (ours)")
    result.add_argument("--split-sentences", action="store_true", help=argparse.SUPPRESS)
    return result


def preprocess(arguments: Sequence[str] | None = None) -> list[Path]:
    """Run with command-line arguments; the prefixes written (PREFIX_KEY_document, as Megatron-LM names them).

    A file PREFIX.tokenizer.json beside each pair records the tokenizer, so that a corpus of another one
    refuses the pair.

    Raises:
        MooError: flags that do not fit, bad input with file, line and offset.
    """
    args = parser().parse_args(arguments)
    if args.split_sentences:
        raise MooError("--split-sentences is for BERT data", "preprocess_data.py", "leave it out")
    if args.tokenizer_type not in TOKENIZERS:
        known = ", ".join(TOKENIZERS)
        raise MooError(
            f"unknown tokenizer type {args.tokenizer_type!r}", "--tokenizer-type", f"choose one of {known}"
        )
    spec = _spec(TOKENIZERS[args.tokenizer_type], args.tokenizer_model)
    if spec["type"] == "hf" and not args.tokenizer_hf_no_include_special_tokens:
        spec["special"] = True  # Megatron's default
    inputs = [Path(name) for name in sorted(glob.glob(args.input))] or [Path(args.input)]
    for path in inputs:
        if not path.is_file():
            raise MooError("no such file", str(path), "check --input")
    tokenizer = make_tokenizer(spec)
    with EncodePool(spec, Path(), args.workers) as pool, Bar() as bar:
        return [_one_key(args, key, inputs, tokenizer, pool, bar) for key in args.json_keys]


def _spec(kind: str, model: str | None) -> dict[str, Any]:
    if kind == "byte":
        return {"type": "byte"}
    if model is None:
        raise MooError("is missing", "--tokenizer-model", "give the tokenizer's folder or file")
    return {"type": kind, ("path" if kind == "hf" else "model"): str(Path(model).absolute())}


def _one_key(
    args: argparse.Namespace, key: str, inputs: list[Path], tokenizer: Tokenizer, pool: EncodePool, bar: Bar
) -> Path:
    reading = Reading(text_key=key, skip_budget=args.skip_budget)
    total = sum(path.stat().st_size for path in inputs)
    final = Path(f"{args.output_prefix}_{key}_document")
    final.parent.mkdir(parents=True, exist_ok=True)
    working = final.parent / f".{final.name}.partial"
    size = tokenizer.vocab_size
    writer = IndexedWriter(working, token_dtype(size), vocab_size=size)
    skipped = before = 0
    try:
        for path in inputs:
            kind_of(path, reading)
            for block, encoded in pool.map(read_blocks(path, reading), Job(reading)):
                skipped += len(encoded.faults)
                if skipped > args.skip_budget:
                    fault = encoded.faults[-1 - (skipped - args.skip_budget - 1)]
                    where = f"{fault.path}:{fault.line}"
                    raise MooError(
                        f"{fault.reason}, offset {fault.offset}", where, "repair it, or give --skip-budget"
                    )
                _add(writer, encoded, args.append_eod)
                bar.update(key, "document", before + block.done, total)
            before += path.stat().st_size
        writer.finish()
    finally:
        writer.close()
    os.replace(bin_path(working), bin_path(final))
    os.replace(idx_path(working), idx_path(final))
    record = {
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod": tokenizer.eod,
    }
    Path(f"{final}.tokenizer.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    return final


def _add(writer: IndexedWriter, encoded: Encoded, append_eod: bool) -> None:
    tokens, lengths = encoded.tokens, encoded.lengths
    if not append_eod and len(tokens):
        keep = np.ones(len(tokens), bool)
        keep[np.cumsum(lengths) - 1] = False
        tokens, lengths = tokens[keep], lengths - 1
    writer.add(tokens, lengths, encoded.counts)
