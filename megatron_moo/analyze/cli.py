"""``megatron-moo analyze``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError


def add_subcommands(subparsers: Any) -> None:
    """Add ``analyze`` to the command line."""
    parser = subparsers.add_parser(
        "analyze",
        help="languages in a model's layers",
        description="Separability, retrieval, variance, language-owned neurons and CKA of aligned sentences, by layer.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        type=Path,
        metavar="RUN_OR_HF_DIR",
        help="runs/NAME (its newest checkpoint), runs/NAME/checkpoints/iter_… or a Hugging Face folder",
    )
    parser.add_argument(
        "--against", type=Path, metavar="RUN_OR_HF_DIR", help="a second one: before and after, or two runs"
    )
    parser.add_argument(
        "--text", type=Path, required=True, help="folder of aligned text, TAG.jsonl or TAG.txt"
    )
    parser.add_argument("--languages", help="some of them: en,fr,de")
    parser.add_argument("--tokenizer", help="byte, a .model, or a folder; default: the run's or folder's own")
    parser.add_argument("--sentences", type=int, default=200, help="most sentences (default: 200)")
    parser.add_argument("--tokens", type=int, default=128, help="most tokens of a sentence (default: 128)")
    parser.add_argument(
        "--out", type=Path, help="folder to write to (default: RUN/analysis for a run, else ./analysis)"
    )
    parser.set_defaults(func=_analyze)


def _analyze(args: argparse.Namespace) -> int:
    from rich.console import Console

    from megatron_moo.analyze.analyze import analyze, between
    from megatron_moo.analyze.hidden import collect, common_sentences
    from megatron_moo.analyze.plots import write_plots
    from megatron_moo.evaluate.aligned import digest, read_aligned
    from megatron_moo.evaluate.model import open_model
    from megatron_moo.report.beside import ANALYSIS_DIR, ANALYSIS_FILE

    console = Console(highlight=False, soft_wrap=True)
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    texts = read_aligned(args.text, args.languages.split(",") if args.languages else None)
    if len(texts) < 2:
        raise MooError("one language only", "--languages", "give two or more")
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise MooError("needs scikit-learn", "analyze", "pip install megatron-moo[analyze]") from None
    keys = common_sentences(texts, args.sentences)
    asked = {
        "text": digest({tag: [text.paragraphs[key] for key in keys] for tag, text in texts.items()}),
        "tokens": args.tokens,
    }
    found: list[dict[str, Any]] = []
    states: list[Any] = []
    run: Path | None = None
    for path in [args.model, *([args.against] if args.against else [])]:
        with open_model(path, args.tokenizer) as opened:
            with errors.status("megatron-moo") as status:  # shown on a terminal only
                hidden = collect(
                    opened, texts, keys, args.tokens, tell=lambda tag: status.update(f"megatron-moo: {tag}")
                )
            name = _name(path, opened.name, [item["model"] for item in found])
            found.append({**analyze(hidden, name), "step": opened.step, **asked})
            states.append(hidden)
            run = opened.run if path is args.model else run
    out = args.out or (run or Path()) / ANALYSIS_DIR
    out.mkdir(parents=True, exist_ok=True)
    told: Any = found[0] if len(found) == 1 else {"models": found, "between": between(*states)}
    (out / ANALYSIS_FILE).write_text(json.dumps(told) + "\n", encoding="utf-8")
    write_plots(found, out)
    _show(console, found)
    if len(found) > 1:
        _show_between(console, found, told["between"])
    console.print(
        f"megatron-moo: {out / ANALYSIS_FILE}, layers.png and other pictures beside it", markup=False
    )
    if run is not None and args.out is None:
        console.print(f"megatron-moo report {run} shows them on the run's page", markup=False)
    return 0


def _name(path: Path, name: str, taken: Sequence[str]) -> str:
    return f"{path.resolve().parent.name}-{name}" if name in taken else name


def _show(console: Any, found: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    from megatron_moo.analyze.curves import CURVES, SHORT

    for item in found:
        chance = item["chance"]
        table = Table(
            title=f"{item['model']}: {len(item['languages'])} languages x {item['sentences']} sentences; chance of the "
            f"probe {chance['probe']:.3f}, of retrieval {chance['retrieval']:.3f}"
        )
        table.add_column("layer", justify="right")
        heads = list(SHORT)
        heads.insert(heads.index("cka") + 1, "chance")
        for name in heads:
            table.add_column(name, justify="right", no_wrap=True)
        names = list(CURVES)
        names.insert(names.index("cka") + 1, "cka_chance")
        for layer in item["layers"]:
            cells = [f"{layer[name]:.3f}" if name in layer else "" for name in names]
            table.add_row(str(layer["layer"]), *cells)
        console.print(table)
        if owned := [layer["owned_by"] for layer in item["layers"] if "owned_by" in layer]:
            sums = ", ".join(f"{tag} {sum(one[tag] for one in owned)}" for tag in item["languages"])
            console.print(f"MLP neurons that one language owns, all layers: {sums}", markup=False)


def _show_between(
    console: Any, found: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]]
) -> None:
    from rich.table import Table

    names = " and ".join(item["model"] for item in found)
    if not layers:
        console.print(f"{names}: of unequal depth, so no CKA between them", markup=False)
        return
    table = Table(title=f"CKA between {names}, the same sentences")
    for name in ("layer", "all", "chance", *found[0]["languages"]):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in layers:
        cells = [layer["cka"], layer["chance"], *layer["cka_by"].values()]
        table.add_row(str(layer["layer"]), *(f"{value:.3f}" for value in cells))
    console.print(table)
