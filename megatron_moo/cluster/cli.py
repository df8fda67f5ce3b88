"""``megatron-moo plan``: does a recipe fit, what does it send, how long is a step."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from megatron_moo.cluster.show import show
from megatron_moo.errors import MooError

_GIB = 2**30


def add_subcommands(subparsers: Any) -> None:
    """Add ``plan`` to the command line."""
    text = "say what a recipe needs of N GPUs: memory, bytes on the wire, time; no GPU and no corpus needed"
    parser = subparsers.add_parser(
        "plan",
        help=text,
        description=text.capitalize() + ". Every key of a recipe can be given as a flag, and wins.",
        allow_abbrev=False,
    )
    parser.add_argument("recipe", type=Path, help="a YAML file of flags")
    parser.add_argument("--gpus", type=int, required=True, metavar="N", help="GPUs in all")
    parser.add_argument(
        "--gpus-per-node", type=int, default=8, metavar="M", help="GPUs of a node (default 8)"
    )
    numbers = (
        ("--gpu-memory", 79.0, "GIB", "memory of a GPU (default 79, an H100 of 80 GB)"),
        (
            "--reserve",
            5.0,
            "GIB",
            "of it, what CUDA, NCCL and the allocator's gaps take: an assumption (default 5)",
        ),
        ("--tflops", 350.0, "X", "TFLOP/s a GPU reaches in training: an assumption (default 350)"),
        ("--inside", 200.0, "GB/S", "of a GPU to its node: an assumption (default 200)"),
        ("--between", 40.0, "GB/S", "of a GPU to other nodes: an assumption (default 40)"),
        ("--hbm", 2000.0, "GB/S", "of a GPU to its memory: an assumption (default 2000)"),
    )
    for name, default, unit, help_text in numbers:
        parser.add_argument(name, type=float, default=default, metavar=unit, help=help_text)
    parser.add_argument("--json", action="store_true", help="print everything as JSON, in bytes and seconds")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Answer the command: 0 when the recipe fits, 1 when it does not.

    Raises:
        MooError: for anything a user can mend.
    """
    from megatron_moo.cluster.estimate import Machine, estimate
    from megatron_moo.cluster.settle import settle
    from megatron_moo.training import platform
    from megatron_moo.training.recipe import load_recipe

    for name in ("gpu_memory", "tflops", "inside", "between", "hbm"):
        if not 0 < (value := getattr(args, name)) < float("inf"):
            raise MooError(
                f"{value:g} is not a positive number", f"--{name.replace('_', '-')}", "give one above 0"
            )
    if not 0 <= args.reserve < args.gpu_memory:
        raise MooError(
            f"{args.reserve:g} GiB cannot be taken of --gpu-memory {args.gpu_memory:g}",
            "--reserve",
            "give a number from 0 to less than that",
        )
    platform.prepare()
    recipe = load_recipe(args.recipe, list(args.flags))
    settled = settle(recipe, args.gpus, args.gpus_per_node)
    machine = Machine(
        args.gpus, args.gpus_per_node, args.gpu_memory * _GIB, args.reserve * _GIB,
        args.tflops, args.inside, args.between, args.hbm,
    )  # fmt: skip
    found = estimate(settled, machine)
    if args.json:
        sys.stdout.write(json.dumps(found.as_dict(), indent=2) + "\n")
    else:
        show(found)
    return 0 if found.fits else 1
