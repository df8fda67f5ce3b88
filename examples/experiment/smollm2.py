"""The comparison with a real model: SmolLM2-135M fine-tuned on four languages by `mean` and by layer-wise `cagrad`.

    pip install "megatron-moo[examples,analyze]"
    python examples/convert/real_model.py smollm2                       # once: fetches and imports the model
    megatron-moo data prepare libreoffice-help --out examples/libreoffice-help/data
    python examples/experiment/smollm2.py --write docs/smollm2.md       # about an hour on two cores

Both arms start from the same weights and see the same batches with the same learning rate, which nobody tuned, and one
seed: the page shows what this run measured, and cannot tell a difference between methods from chance.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TEXT = ROOT / "examples" / "libreoffice-help" / "data" / "valid"
HOME = Path("runs") / "smollm2"
SEEN, UNSEEN = ("en", "de", "ru", "ko"), ("fr", "it", "pl", "vi")
ARMS = {"mean": ("--moo-method", "mean"), "cagrad": ("--moo-method", "cagrad", "--moo-option", "c=0.5")}
LAYERS = (0, 8, 15, 22, 30)
MEASURES = ("silhouette", "probe", "retrieval", "owned")


def cut_text(folder: Path, size: int) -> int:
    """Write the same held-out pages of every language, whole pages until English has ``size`` bytes.

    Returns:
        the number of pages.
    """
    read = {
        tag: {page["id"]: page for page in map(json.loads, _lines(TEXT / f"{tag}.jsonl"))}
        for tag in (*SEEN, *UNSEEN)
    }
    common = [page for page in read["en"] if all(page in pages for pages in read.values())]
    taken: list[str] = []
    while common and sum(len(read["en"][page]["text"].encode()) for page in taken) < size:
        taken.append(common.pop(0))
    folder.mkdir(parents=True, exist_ok=True)
    for tag, pages in read.items():
        text = "".join(json.dumps(pages[page], ensure_ascii=False) + "\n" for page in taken)
        (folder / f"{tag}.jsonl").write_text(text, encoding="utf-8")
    return len(taken)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def moo(*words: str | Path) -> None:
    """Run a command of megatron-moo in the repository's root; ends the script when it fails."""
    told = [str(word) for word in words]
    sys.stdout.write(f"\n$ megatron-moo {' '.join(told)}\n")
    sys.stdout.flush()
    subprocess.run([sys.executable, "-m", "megatron_moo.cli", *told], cwd=ROOT, check=True)


def trained(arm: str, steps: int) -> Path:
    """The finished run of an arm; one that an earlier call began goes on from its last checkpoint."""
    run = HOME / f"{arm}-{steps}"
    if not (ROOT / run / "report.html").is_file():
        moo(
            "train", "examples/experiment/smollm2.yaml", *ARMS[arm], "--train-iters", str(steps), "--eval-interval",
            str(steps), "--save-interval", str(max(1, steps // 3)), "--run-dir", run,
        )  # fmt: skip
    return run


def measured(run: Path) -> dict[str, Any]:
    """First and last validation of a run, its seconds per step and its conflict."""
    lines = [json.loads(line) for line in _lines(ROOT / run / "metrics.jsonl")]
    valids = [line for line in lines if line.get("event") == "valid"]
    steps = [line for line in lines if "event" not in line]
    cosines = [
        statistics.mean(
            value for i, row in enumerate(step["moo"]["cosine"]) for value in row[:i] if value is not None
        )
        for step in steps
    ]
    return {
        "before": valids[0]["bits_per_byte"],
        "after": valids[-1]["bits_per_byte"],
        "hours": (valids[-1]["time"] - valids[0]["time"]) / 3600,
        "tokens": sum(sum(step["tokens"].values()) for step in steps),
        "cosine": statistics.mean(cosines),
        "conflict": statistics.mean(step["moo"]["conflict_rate"] for step in steps),
    }


def analysed(run: Path) -> list[dict[str, Any]]:
    """Representations of the model before training and after it, the same sentences."""
    out = ROOT / run / "analysis"
    if not (out / "analysis.json").is_file():
        words = ("--text", HOME / "valid", "--sentences", "40", "--tokens", "32")
        moo("analyze", run, "--against", HOME / "hf", *words)
    found: list[dict[str, Any]] = json.loads((out / "analysis.json").read_text(encoding="utf-8"))["models"]
    return found


def page(command: str, steps: int, pages: int, size: int) -> str:
    """Everything measured, as Markdown."""
    runs = {arm: trained(arm, steps) for arm in ARMS}
    found = {arm: measured(run) for arm, run in runs.items()}
    layers = {arm: analysed(run) for arm, run in runs.items()}
    mean, cagrad = found["mean"], found["cagrad"]
    sides = (mean["before"], mean["after"], cagrad["after"])
    named = {tag: (tag,) for tag in SEEN} | {f"{tag} (unseen)": (tag,) for tag in UNSEEN}
    named |= {"**seen**": SEEN, "**unseen**": UNSEEN}
    rows = [
        _row(name, *(statistics.mean(told[tag] for tag in tags) for told in sides))
        for name, tags in named.items()
    ]
    shapes = []
    for layer in LAYERS:
        cells = []
        for which in (layers["mean"][1], layers["mean"][0], layers["cagrad"][0]):
            told = which["layers"][layer]
            cells += [f"{told[name]:.3f}" if name in told else "" for name in MEASURES]
        shapes.append(f"| {layer} | " + " | ".join(cells) + " |")
    tokens = f"{mean['tokens'] / steps:,.0f}"
    hours = f"{mean['hours']:.2f} and {cagrad['hours']:.2f} hours"
    cosine = f"{mean['cosine']:.3f} under mean, {cagrad['cosine']:.3f} under cagrad"
    conflict = f"{100 * mean['conflict']:.1f} % and {100 * cagrad['conflict']:.1f} %"
    chance = layers["mean"][0]["chance"]
    heads = [f"{arm}: {name}" for arm in ("before", *ARMS) for name in MEASURES]
    return f"""# SmolLM2-135M, mean against cagrad

Written by `{command}`:
SmolLM2-135M-Instruct (from its Q4 release, [convert.md](convert.md)), {steps} steps of {tokens} tokens
(2 ranks x 2 slots, a language each) of libreoffice-help, AdamW at 1e-4 with cosine decay, `mean` and `cagrad`
(c = 0.5, block layer) from the same weights on the same batches: {hours} on a CPU.
**One seed and a learning rate that nobody tuned: differences between the two columns may be chance**, and the text is
one kind of text. [results.md](results.md) is the experiment with seeds; this page shows that the path works on a real
model, and what fine-tuning does to languages that it does not see.

## Held-out loss

Bits per byte over the same {pages} pages of every language ({size / 1000:g} kB of English). Below 0: cagrad is better.

| language | before | mean | cagrad | cagrad minus mean |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}

Mean cosine between two languages' gradients over the run: {cosine}. (Layer, pair) with a negative cosine: {conflict}.

## Representations

`megatron-moo analyze` over {layers["mean"][0]["sentences"]} aligned sentences in {len(SEEN) + len(UNSEEN)} languages
([evaluation.md](evaluation.md) has the measures; chance of the probe {chance["probe"]:.3f}, of retrieval
{chance["retrieval"]:.3f}). Layer 0 is the embedding.

| layer | {" | ".join(heads)} |
| --- |{" --- |" * len(heads)}
{chr(10).join(shapes)}
"""


def _row(name: str, before: float, mean: float, cagrad: float) -> str:
    return f"| {name} | {before:.4f} | {mean:.4f} | {cagrad:.4f} | {cagrad - mean:+.4f} |"


def main() -> int:
    """Train both arms, measure, write or print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150, help="of either arm (default: 150)")
    parser.add_argument("--bytes", type=int, default=8000, help="of held-out English text (default: 8000)")
    parser.add_argument("--write", type=Path, help="where the page goes (default: printed)")
    args = parser.parse_args()
    for needed, way in (
        (ROOT / HOME / "megatron", "python examples/convert/real_model.py smollm2"),
        (TEXT, "megatron-moo data prepare libreoffice-help --out examples/libreoffice-help/data"),
    ):
        if not needed.exists():
            raise SystemExit(f"{needed} is not there: run `{way}`")
    pages = cut_text(ROOT / HOME / "valid", args.bytes)
    words = f" --steps {args.steps}" + (f" --write {args.write}" if args.write else "")
    text = page(f"python examples/experiment/smollm2.py{words}", args.steps, pages, args.bytes)
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
