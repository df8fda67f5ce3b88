"""``megatron-moo eval`` and ``megatron-moo compare``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError


def add_subcommands(subparsers: Any) -> None:
    """Add ``eval`` and ``compare`` to the command line."""
    parser = subparsers.add_parser(
        "eval", help="losses, aligned cloze and samples per language", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="RUN_OR_HF_DIR",
        help="runs/NAME (its newest checkpoint), runs/NAME/checkpoints/iter_… or a Hugging Face folder",
    )
    parser.add_argument(
        "--text", type=Path, help="folder of aligned held-out text, TAG.jsonl or TAG.txt per language"
    )
    parser.add_argument("--languages", help="some of them: en,fr,de")
    parser.add_argument("--tokenizer", help="byte, a .model, or a folder; default: the run's or folder's own")
    parser.add_argument("--seq-length", type=int, help="targets per window (default: the run's, or 512)")
    parser.add_argument(
        "--windows",
        type=int,
        help="bounds the text of the loss: windows per language of a run's own (default: all); of --text, whole "
        "documents until the first language, by its tag, has the bytes of so many, at 4 bytes a token (default: 64)",
    )
    parser.add_argument("--items", type=int, default=100, help="most cloze items (default: 100, 0: none)")
    parser.add_argument(
        "--new-tokens", type=int, default=60, help="tokens of a sample (default: 60, 0: none)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="of the samples (default: 0, greedy)")
    parser.add_argument("--batch-tokens", type=int, default=2048, help="tokens of a batch (default: 2048)")
    parser.add_argument(
        "--lm-eval", action="store_true", help="cross-check the cloze with lm-evaluation-harness"
    )
    parser.add_argument(
        "--tasks", metavar="NAME,…", help="run these tasks or groups of lm-evaluation-harness too"
    )
    parser.add_argument(
        "--task-dir", type=Path, help="keep --lm-eval's task files here; --tasks finds your own here"
    )
    parser.add_argument(
        "--out", type=Path, help="where eval.json goes (default: RUN/eval.json, else ./eval.json)"
    )
    parser.set_defaults(func=_eval)
    _add_compare(subparsers)


def _add_compare(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="runs over paired seeds",
        description="Mean differences with bootstrap intervals over runs paired by seed, from their last validation; "
        "prints a table and writes one self-contained page.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or names under runs/")
    parser.add_argument("--reference", metavar="NAME", help="a run of the reference (default: the first)")
    parser.add_argument("--allow-unequal", action="store_true", help="compare although tokens or data differ")
    parser.add_argument("--out", type=Path, help="also write the differences here as JSON")
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="where the page goes (default: compare-RUN-OTHER.html beside the reference's first run)",
    )
    parser.set_defaults(func=_compare)


def _eval(args: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_moo.evaluate.aligned import read_aligned
    from megatron_moo.evaluate.evaluate import Asked, evaluate
    from megatron_moo.evaluate.model import open_model
    from megatron_moo.evaluate.show import show_evaluation, show_harness, show_tasks
    from megatron_moo.report.beside import EVAL_FILE

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    tags = args.languages.split(",") if args.languages else None
    texts = read_aligned(args.text, tags) if args.text else {}
    for name in ("seq_length", "windows", "batch_tokens"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise MooError(f"{value} is too small", f"--{name.replace('_', '-')}", "give at least 1")
    if args.lm_eval and (not texts or args.items < 1):
        raise MooError("needs a cloze to check", "--lm-eval", "give --text and --items")
    names = [name for name in (args.tasks or "").split(",") if name]
    if args.tasks is not None and not names:
        raise MooError("names no task", "--tasks", "give NAME,NAME")
    if names and not args.lm_eval and args.task_dir is not None and not args.task_dir.is_dir():
        raise MooError("is no folder", f"--task-dir {args.task_dir}", "give one with task files")
    windows = args.windows or (64 if texts else None)
    asked = Asked(args.seq_length, windows, args.items, args.new_tokens, args.temperature, args.batch_tokens)
    with open_model(args.model, args.tokenizer) as opened:
        if not texts and opened.corpus is None and not names:
            raise MooError("no text to evaluate on", "--text", "give a folder with TAG.jsonl or TAG.txt")
        with errors.status("megatron-moo") as status:  # shown on a terminal only
            found = evaluate(opened, texts, asked, lambda line: status.update(f"megatron-moo: {line}"))
        if args.lm_eval and not found["items"]:
            raise MooError(
                "no cloze item is found in this text", "--lm-eval", "give more text, or fewer --languages"
            )
        items = found.pop("items")
        if args.lm_eval:
            from megatron_moo.evaluate.harness import check_lengths, harness_cloze

            check_lengths(opened.tokenizer, items, texts, opened.max_length)
            with tempfile.TemporaryDirectory() as folder:
                place = args.task_dir or Path(folder)
                told = harness_cloze(opened, items, texts, place)
            for tag, numbers in told.items():
                found["languages"][tag]["lm_eval"] = numbers
        if names:
            from megatron_moo.evaluate.harness import run_tasks

            errors.print(f"megatron-moo: {', '.join(names)} through lm-eval", markup=False)
            with contextlib.redirect_stdout(sys.stderr):
                found["tasks"] = run_tasks(opened, names, args.task_dir)
        out = args.out or (opened.run or Path()) / EVAL_FILE
        run = opened.run
    out.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    if found["languages"]:
        show_evaluation(console, found)
    if args.lm_eval:
        show_harness(console, found)
    if names:
        show_tasks(console, found["tasks"])
    console.print(f"megatron-moo: {out}", markup=False)
    if run is not None and args.out is None:
        console.print(f"megatron-moo report {run} shows it on the run's page", markup=False)
    return 0


def _compare(args: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_moo.evaluate.compare import compare, read_run
    from megatron_moo.evaluate.compare_page import write_comparison
    from megatron_moo.evaluate.show import show_comparison
    from megatron_moo.report.cli import find_run

    runs = [read_run(find_run(name)) for name in args.runs]
    reference = None if args.reference is None else find_run(args.reference).name
    found = compare(runs, reference, args.allow_unequal)
    if args.out:
        args.out.write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
    console = Console(highlight=False, soft_wrap=True)
    show_comparison(console, found)
    console.print(f"megatron-moo: {write_comparison(found, args.page)}", markup=False)
    return 0
