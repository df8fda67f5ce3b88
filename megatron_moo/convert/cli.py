"""``megatron-moo convert``: Hugging Face checkpoints in and out."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

from megatron_moo.convert.lora_cli import add_lora_subcommands
from megatron_moo.errors import MooError

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_subcommands(subparsers: Any) -> None:
    """Add ``convert`` with import, export, verify, merge-lora and export-lora."""
    convert = subparsers.add_parser(
        "convert", help="Hugging Face checkpoints in and out", description=__doc__, allow_abbrev=False
    )
    kinds = convert.add_subparsers(dest="convert_command", required=True, metavar="COMMAND")
    _add_import(kinds)
    _add_export(kinds)
    _add_verify(kinds)
    add_lora_subcommands(kinds)


def _common(parser: Any) -> None:
    parser.add_argument(
        "--ignore-key", action="append", default=[], metavar="KEY",
        help="a key of config.json that you know not to change what the model computes",
    )  # fmt: skip


def _allow_pickle(parser: Any) -> None:
    parser.add_argument(
        "--allow-pickle", action="store_true",
        help="read pytorch_model*.bin with torch.load(weights_only=True) where there are no safetensors",
    )  # fmt: skip


def _add_import(kinds: Any) -> None:
    parser = kinds.add_parser("import", help="Hugging Face to Megatron", allow_abbrev=False)
    parser.add_argument("hf_dir", type=Path, help="folder with config.json and safetensors")
    parser.add_argument(
        "ckpt_dir", type=Path, help="folder to make; train from it with --pretrained-checkpoint"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace CKPT_DIR")
    _allow_pickle(parser)
    _common(parser)
    parser.set_defaults(func=_import)


def _add_export(kinds: Any) -> None:
    parser = kinds.add_parser("export", help="Megatron to Hugging Face", allow_abbrev=False)
    parser.add_argument(
        "ckpt_dir", type=Path, help="save folder of a run (its newest checkpoint) or one checkpoint"
    )
    parser.add_argument("hf_dir", type=Path, help="folder to make")
    parser.add_argument(
        "--like", type=Path, metavar="DIR", help="Hugging Face folder that gives config and tokenizer"
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16"], help="convert the weights (default: keep)"
    )
    parser.add_argument(
        "--shard-size", default="5GB", help="largest shard, such as 5GB or 500MB (default: 5GB)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace HF_DIR")
    _common(parser)
    parser.set_defaults(func=_export)


def _add_verify(kinds: Any) -> None:
    parser = kinds.add_parser("verify", help="compare both sides", allow_abbrev=False)
    parser.add_argument("hf_dir", type=Path)
    parser.add_argument("ckpt_dir", type=Path)
    parser.add_argument("--logits", action="store_true", help="compare logits on --text too, in fp32")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--text", help="text for --logits (default: a short one of three languages)")
    text.add_argument(
        "--text-file", type=Path, metavar="FILE", help="the same from a file, its first 512 tokens"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, help="largest difference of a weight (default: 0)"
    )
    parser.add_argument(
        "--logit-tolerance", type=float, default=1e-3, help="largest difference of a logit (default: 1e-3)"
    )
    parser.add_argument("--all", action="store_true", help="print every tensor, not only those that differ")
    _allow_pickle(parser)
    _common(parser)
    parser.set_defaults(func=_verify)


def _import(args: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_moo.convert.importer import import_checkpoint

    model = import_checkpoint(args.hf_dir, args.ckpt_dir, args.ignore_key, args.allow_pickle, args.overwrite)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"megatron-moo: {model.family}, {model.layers} layers, in {args.ckpt_dir}")
    console.print(f"megatron-moo: its flags are in {args.ckpt_dir / 'model.yaml'}")
    return 0


def _export(args: argparse.Namespace) -> int:
    import torch
    from rich.console import Console

    from megatron_moo.convert.exporter import export_checkpoint

    dtype = getattr(torch, args.dtype) if args.dtype else None
    found = export_checkpoint(
        args.ckpt_dir, args.hf_dir, args.like, dtype, _bytes(args.shard_size), args.ignore_key, args.overwrite
    )
    console = Console(highlight=False, soft_wrap=True)
    origin = (
        f"config and tokenizer of {found.like}"
        if found.like
        else "a config made from the run's flags, no tokenizer"
    )
    console.print(f"megatron-moo: {found.config['architectures'][0]} in {args.hf_dir} ({origin})")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_moo.convert.verify import logit_difference, tensor_differences, text_tokens
    from megatron_moo.models.families.config import load_config

    console = Console(highlight=False, soft_wrap=True)
    count, differ, worst, bad = 0, 0, 0.0, False
    for item in tensor_differences(args.hf_dir, args.ckpt_dir, args.ignore_key, args.allow_pickle):
        count, differ = count + 1, differ + (item.value != 0)
        # NaN is worse than any number, and stays.
        worst = item.value if math.isnan(item.value) or item.value > worst else worst
        bad |= not item.value <= args.tolerance
        if args.all or item.value != 0:
            console.print(f"{item.value:.3e}  {item.name}")
    told = f" {differ} of them differ{'s' if differ == 1 else ''}," if differ else ""
    console.print(f"{count} tensors,{told} largest difference {worst:.3e}")
    if args.logits:
        vocab = load_config(args.hf_dir / "config.json").integer("vocab_size")
        tokens = text_tokens(args.hf_dir, _text(args), vocab)
        found = logit_difference(args.hf_dir, args.ckpt_dir, tokens, args.ignore_key, args.allow_pickle)
        console.print(
            f"logits of {len(tokens)} tokens, largest difference {found.gap:.3e} "
            f"(largest logit {found.largest:.3g})"
        )
        console.print("perplexity {:.6g} in transformers, {:.6g} in Megatron".format(*found.perplexity))
        bad |= not found.gap <= args.logit_tolerance
    return 1 if bad else 0


def _text(args: argparse.Namespace) -> str | None:
    if args.text_file is None:
        return args.text
    try:
        return args.text_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MooError(f"cannot be read ({error})", str(args.text_file), "give a text in UTF-8") from None


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(KB|MB|GB)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0
    if size < 1:
        raise MooError(f"{text!r} is not a size", "--shard-size", "write 5GB or 500MB")
    return int(size)
