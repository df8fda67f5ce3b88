"""``megatron-moo convert merge-lora`` and ``convert export-lora``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def add_lora_subcommands(convert_subparsers: Any) -> None:
    """Add the adapters' commands to the group ``convert``."""
    merge = convert_subparsers.add_parser(
        "merge-lora",
        help="write a checkpoint of the plain model with the adapters merged in",
        allow_abbrev=False,
    )
    merge.add_argument("checkpoint", type=Path, help="checkpoint with adapters (runs/NAME/checkpoints)")
    merge.add_argument("out", type=Path, help="new checkpoint folder")
    merge.set_defaults(func=_merge)
    export = convert_subparsers.add_parser(
        "export-lora", help="write the adapters as a Hugging Face PEFT folder", allow_abbrev=False
    )
    export.add_argument("checkpoint", type=Path, help="checkpoint with adapters (runs/NAME/checkpoints)")
    export.add_argument("out", type=Path, help="folder for adapter_config.json and adapter_model.safetensors")
    export.add_argument(
        "--base", help="name or path of the Hugging Face base model, noted in the configuration"
    )
    export.set_defaults(func=_export)


def _merge(args: argparse.Namespace) -> int:
    from megatron_moo.convert.lora import merge_checkpoint

    merge_checkpoint(args.checkpoint, args.out)
    sys.stdout.write(f"megatron-moo: merged into {args.out}\n")
    return 0


def _export(args: argparse.Namespace) -> int:
    from megatron_moo.convert.lora import export_peft

    modules = export_peft(args.checkpoint, args.out, args.base)
    sys.stdout.write(f"megatron-moo: adapters of {', '.join(modules)} written to {args.out}\n")
    return 0
