"""What ``tools/pretrain_gpt.py`` does: fill in what a recipe's plan would have settled, then be a rank."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.arguments import add_moo_arguments
from megatron_moo.training.recipe import DEFAULTS, REQUIRED, to_argv


def complete_argv(argv: list[str]) -> list[str]:
    """The command line with MOO's and the machine's flags in front, and the corpus's vocabulary.

    Raises:
        MooError: when no manifest is named.
    """
    from megatron_moo.data import build_corpus, load_manifest

    ours, _ = add_moo_arguments(argparse.ArgumentParser(add_help=False)).parse_known_args(argv[1:])
    if ours.languages is None:
        raise MooError("no manifest", "--languages", "name a languages.yaml")
    run_dir = Path(ours.run_dir or "runs/pretrain_gpt")
    corpus = build_corpus(load_manifest(ours.languages), ours.corpus or run_dir / "corpus")
    values = platform.default_flags() | DEFAULTS | REQUIRED
    values |= {"vocab-size": corpus.vocab_size, "corpus": str(corpus.path), "run-dir": str(run_dir)}
    values |= {"save": str(run_dir / "checkpoints"), "tensorboard-dir": str(run_dir / "tensorboard")}
    return [argv[0], *to_argv(values), *argv[1:]]


def door(argv: list[str]) -> int:
    """Train with the given command line; 0 for success, 2 for a user's mistake (one line on stderr)."""
    from megatron_moo.training.main import main

    try:
        sys.argv = complete_argv(argv)
        return main()
    except MooError as error:
        sys.stderr.write(f"megatron-moo: error: {error}\n")
        return 2
