"""What ``tools/pretrain_gpt.py`` does: fill in what a recipe's plan would have settled, then be a rank."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.arguments import add_moo_arguments
from megatron_moo.training.recipe import DEFAULTS, REQUIRED, to_argv
from megatron_moo.training.support import check_supported


def complete_argv(argv: list[str]) -> list[str]:
    """The command line with MOO's and the machine's flags in front, and the corpus's vocabulary.

    Raises:
        MooError: when no manifest is named, and for flags that MOO cannot work with.
    """
    from megatron_moo.data import build_corpus, load_manifest
    from megatron_moo.training.install import check_needed
    from megatron_moo.training.plan import read_flags

    if {"-h", "--help"} & set(argv[1:]):
        return argv  # Megatron's parser answers
    ours, _ = add_moo_arguments(argparse.ArgumentParser(add_help=False)).parse_known_args(argv[1:])
    if ours.languages is None:
        raise MooError("no manifest", "--languages", "name a languages.yaml")
    values = platform.default_flags() | DEFAULTS | REQUIRED
    args = read_flags([*to_argv(values), *argv[1:]])
    check_supported(args, warn=False)  # install() warns
    check_needed(args)
    run_dir = Path(ours.run_dir or "runs/pretrain_gpt")
    corpus = build_corpus(load_manifest(ours.languages), ours.corpus or run_dir / "corpus")
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
