"""What a narrower wire costs: bytes, error of the cosines, final loss over seeds, on the quickstart's recipe.

    python bench/wire.py                                                a short look: 1 seed, 20 steps
    python bench/wire.py --seeds 5 --steps 60 --write docs/wire.md     20 runs of a minute

Every wire trains the same model on the same batches with the same seeds, so losses are paired by seed. The cosines
are those of the first step, where all wires see the same weights; ``wire_blocks.py`` has them block by block.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "examples" / "quickstart.yaml"
WIRES: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16": ("--moo-wire", "bf16"),
    "fp8": ("--moo-wire", "fp8"),
    "fp8, feedback": ("--moo-wire", "fp8", "--moo-wire-feedback"),
}
T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def trained(folder: Path, wire: str, seed: int, steps: int) -> dict[str, Any]:
    """Train once (or read what an earlier call left); held-out loss of seen languages, bytes a step, cosines."""
    run = folder / f"{wire.replace(', ', '-')}-seed{seed}-steps{steps}"
    if not (run / "report.html").is_file():
        subprocess.run(
            [
                sys.executable, "-m", "megatron_moo.cli", "train", str(RECIPE), *WIRES[wire], "--seed", str(seed),
                "--train-iters", str(steps), "--eval-interval", str(steps), "--run-dir", str(run),
            ],
            check=True, cwd=ROOT, stdout=subprocess.DEVNULL,
        )  # fmt: skip
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    valid = [line for line in lines if line.get("event") == "valid"][-1]
    first = next(line for line in lines if "event" not in line)
    return {
        "loss": statistics.mean(valid["loss"][tag] for tag in valid["seen"]),
        "bytes": first["bytes_sent"],
        "cosine": first["moo"]["cosine"],
    }


def off(one: list[list[float | None]], other: list[list[float | None]]) -> float:
    """Largest difference of two cosine matrices."""
    pairs = zip((x for row in one for x in row), (x for row in other for x in row), strict=True)
    return max(abs(a - b) for a, b in pairs if a is not None and b is not None)


def measure(folder: Path, seeds: int, steps: int) -> dict[str, list[dict[str, Any]]]:
    """Results by wire, one for each seed."""
    return {wire: [trained(folder, wire, 1234 + seed, steps) for seed in range(seeds)] for wire in WIRES}


def table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The comparison as a Markdown table."""
    base = results["fp32"]
    spread = max(r["loss"] for r in base) - min(r["loss"] for r in base)
    lines = [
        "| wire | MB sent per rank and step | of fp32 | largest error of a cosine, step 1 | held-out loss, seen "
        "(nats per token) | minus fp32, paired by seed [95 %] | within fp32's seed spread |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for wire, runs in results.items():
        mean = statistics.mean(r["loss"] for r in runs)
        differences = [r["loss"] - b["loss"] for r, b in zip(runs, base, strict=True)]
        sent = [f"{runs[0]['bytes'] / 1e6:.3f}", f"{runs[0]['bytes'] / base[0]['bytes']:.4f}"]
        if wire == "fp32":
            lines.append(f"| {wire} | {sent[0]} | {sent[1]} | | {mean:.4f} (seeds span {spread:.4f}) | | |")
            continue
        worst = max(off(r["cosine"], b["cosine"]) for r, b in zip(runs, base, strict=True))
        gap = statistics.mean(differences)
        within = "yes" if abs(gap) <= spread else "**no**"
        lines.append(
            f"| {wire} | {sent[0]} | {sent[1]} | {worst:.1e} | {mean:.4f} | {gap:+.4f} {_interval(differences)} "
            f"| {within} |"
        )
    return lines


def _interval(values: list[float]) -> str:
    if len(values) < 2:
        return ""
    half = T_975[min(len(values) - 1, 9)] * statistics.stdev(values) / len(values) ** 0.5
    middle = statistics.mean(values)
    return f"[{middle - half:+.4f}, {middle + half:+.4f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--write", type=Path, metavar="PAGE")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "wire", help="folder of the runs")
    args = parser.parse_args()
    lines = table(measure(args.runs, args.seeds, args.steps))
    print("\n".join(lines))
    if args.write:
        extra = f" --seeds {args.seeds} --steps {args.steps}"
        head = [
            "# The wire",
            "",
            f"Written by `python bench/wire.py{extra} --write {args.write}`: the quickstart's recipe, 2 gloo ranks "
            f"x 8 slots, {args.seeds} seeds, {args.steps} steps. All wires train on the same batches.",
            "",
        ]
        old = args.write.read_text(encoding="utf-8") if args.write.is_file() else ""
        _, heading, rest = old.partition("\n## ")  # what wire_blocks.py wrote stays
        args.write.write_text("\n".join([*head, *lines]) + f"\n{heading}{rest}", encoding="utf-8")


if __name__ == "__main__":
    main()
