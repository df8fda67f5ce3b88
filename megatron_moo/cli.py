"""``megatron-moo``: a thin door to the rooms."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from megatron_moo.errors import MooError

# Rooms that bring subcommands of their own: ``add_subcommands(subparsers)``.
_ROOMS = (
    "megatron_moo.convert.cli",
    "megatron_moo.data.cli",
    "megatron_moo.report.cli",
    "megatron_moo.doctor",
    "megatron_moo.experiment.cli",
    "megatron_moo.evaluate.cli",
    "megatron_moo.analyze.cli",
    "megatron_moo.cluster.cli",
)


def main(argv: list[str] | None = None) -> int:
    """Parse ``argv`` and run a subcommand; 0 only for success, 2 for a user's mistake (one line on stderr)."""
    parser = argparse.ArgumentParser(prog="megatron-moo", description=__doc__, allow_abbrev=False)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    train = subparsers.add_parser(
        "train",
        help="train a recipe",
        allow_abbrev=False,
        description="Train a recipe. Every key of a recipe can be given as a flag, and wins.",
    )
    train.add_argument("recipe", type=Path, help="a YAML file of flags")
    train.add_argument("--nproc", help="ranks on this machine (default: its GPUs, or 2 on a CPU)")
    train.add_argument("--run-dir", help="run folder (default: runs/NAME)")
    train.set_defaults(func=_train)
    for room in _ROOMS:
        importlib.import_module(room).add_subcommands(subparsers)
    args, rest = parser.parse_known_args(argv)
    if rest and args.command not in ("train", "plan"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.flags = rest
    try:
        return int(args.func(args))
    except MooError as error:
        sys.stderr.write(f"megatron-moo: error: {error}\n")
        return 2


def _train(args: argparse.Namespace) -> int:
    from megatron_moo.training.launch import train

    flags = list(args.flags)
    for name in ("nproc", "run-dir"):
        value = getattr(args, name.replace("-", "_"))
        if value is not None:
            flags += [f"--{name}", value]
    return train(args.recipe, flags)


if __name__ == "__main__":
    sys.exit(main())
