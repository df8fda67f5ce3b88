"""The page and the plot of ``step_cost.py --write``."""

from __future__ import annotations

import datetime
import json
import os
import statistics
from pathlib import Path
from typing import Any

from _measure import paired
from _setup import ALONE, STOCK, Setup

_SWEEP = ("fp32acc", "mgda", "cagrad")
# Every setup of the page, and whether memory is measured too.
SETUPS: dict[str, tuple[Setup, bool]] = {
    setup.name: (setup, memory)
    for setup, memory in (
        (Setup("dp2", variants=("plain", "fp32acc", "mgda", "cagrad", "cagrad/model")), True),
        (Setup("dp4", dp=4, objectives=4), False),
        (
            Setup("slots1", dp=1, slots=2, variants=("plain", "mgda", "mgda/layer/bf16", "naive", "torchjd")),
            True,
        ),
        (
            Setup("slots2", objectives=4, slots=2, variants=("plain", "fp32acc", "mgda", "mgda/layer/bf16")),
            True,
        ),
        (Setup("k2", size="small", variants=_SWEEP), False),
        (Setup("k4", objectives=4, size="small", variants=_SWEEP), False),
        (Setup("k8", objectives=8, size="small", variants=_SWEEP), False),
        (Setup("d4", dp=4, objectives=2, size="small", variants=_SWEEP), False),
        (Setup("d8", dp=8, objectives=2, size="small", variants=_SWEEP), False),
        (Setup("large", size="large", variants=_SWEEP), False),
        (Setup("tied", size="tied", variants=_SWEEP), True),
    )
}
# Highest accepted ratio of wall time: setup, base, limit.
TARGETS = (
    ("dp2", "fp32acc", 1.02),
    ("dp2", "plain", 0.95),
    ("dp4", "fp32acc", 1.02),
    ("dp4", "plain", 0.90),
    ("slots1", "plain", 1.08),
    ("slots2", "plain", 1.08),
)
MEMORY_TARGET = 1.03
# Panels of the plot: what grows, and its setups with their place on the axis.
PANELS = (
    ("K, objectives (DP 2, small model)", {"k2": 2, "k4": 4, "k8": 8}),
    ("D, lanes (K 2, small model)", {"k2": 2, "d4": 4, "d8": 8}),
    ("million parameters (DP 2, K 2)", {"k2": None, "dp2": None, "large": None}),
)


def table(result: dict[str, Any]) -> list[str]:
    """A run's results as a Markdown table."""
    setup, wall, cpu = Setup(**result["setup"]), result["wall"], result["cpu"]
    bases = [base for base in STOCK if base in wall]
    sent = ["MB sent, of ring", "kB of Gramians, of formula"]
    ratios = [*(f"wall / {b}" for b in bases), *(f"CPU / {b}" for b in bases)]
    head = ["variant", "ms", *ratios, *sent]
    has_memory = "memory" in result
    head += ["peak MB"] if has_memory else []
    rows = []
    for name in wall:
        cells = [name, f"{1e3 * statistics.median(wall[name]):.0f}"]
        cells += [_interval(wall[name], wall[b]) if b != name else "" for b in bases]
        cells += [_interval(cpu[name], cpu[b]) if b != name else "" for b in bases]
        cells += _bytes(result, setup, name)
        cells += [f"{result['memory'][name][1]:.0f}"] if has_memory else []
        rows.append(cells)
    millions = result["parameters"] / 1e6
    lines = [f"**{setup.title}**, {millions:.1f} million parameters, {setup.pairs} interleaved pairs"]
    lines += ["", _row(head), _row(["---"] * len(head)), *map(_row, rows), ""]
    phases = {name: phase for name, phase in result["phase"].items() if phase}
    if phases:
        keys = list(next(iter(phases.values())))
        lines += [_row(["ms of ours", *keys]), _row(["---"] * (len(keys) + 1))]
        lines += [_row([name, *(f"{1e3 * phase[k]:.1f}" for k in keys)]) for name, phase in phases.items()]
        lines.append("")
    return lines


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _interval(mine: list[float], base: list[float]) -> str:
    middle, low, high = paired(mine, base)
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _bytes(result: dict[str, Any], setup: Setup, name: str) -> list[str]:
    """Counted and expected: megabytes of the exchange, kilobytes of the Gramian reduction."""
    if name in ALONE:
        return ["", ""]
    share = (setup.dp - 1) / setup.dp
    sent = result["bytes"][name]
    passes = 1 if name in STOCK else setup.slots
    exchange = sent["all_to_all_single"] + sent["reduce_scatter_tensor"]
    cells = [f"{exchange / 1e6:.2f} of {passes * share * result['grad_bytes'][name] / 1e6:.2f}"]
    if name in STOCK:
        return [*cells, ""]
    stock = next(base for base in STOCK if base in result["wall"])
    gramians = sent["all_reduce"] - result["bytes"][stock]["all_reduce"]
    return [*cells, f"{gramians / 1e3:.2f} of {2 * share * 8 * result['gramian_values'][name] / 1e3:.2f}"]


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    """One line per target and variant: met, missed, or not to be told apart on so busy a machine."""
    lines = []
    for name, base, limit in TARGETS:
        wall, cpu = (results.get(name, {}).get(kind, {}) for kind in ("wall", "cpu"))
        for variant in wall:
            if variant in (*STOCK, *ALONE) or base not in wall:
                continue
            middle, low, high = paired(wall[variant], wall[base])
            verdict = _verdict(middle <= limit)
            if low <= limit <= high:
                verdict = f"undecided, the interval spans the target (median: {verdict})"
            lines.append(
                f"- {verdict}: {Setup(**results[name]['setup']).title}, {variant}, of {base}: "
                f"wall time {_interval(wall[variant], wall[base])}, target {limit:.2f} "
                f"(CPU time {_interval(cpu[variant], cpu[base])})"
            )
    for name, result in results.items():
        lines += _memory_verdicts(name, result)
    return lines


def _memory_verdicts(name: str, result: dict[str, Any]) -> list[str]:
    setup, memory = Setup(**result["setup"]), result.get("memory", {})
    base = "fp32acc" if "fp32acc" in memory else "plain"
    lines = []
    for variant, (_, peak) in memory.items():
        if variant in (*STOCK, *ALONE):
            continue
        kept = (
            (setup.slots - 1) * result["grad_bytes"][variant] / 1e6 / (2 if variant.endswith("bf16") else 1)
        )
        limit = MEMORY_TARGET * memory[base][1] + kept
        rows = f" plus {kept:.0f} MB of rows kept" if kept else ""
        lines.append(
            f"- {_verdict(peak <= limit)}: {setup.title}, {variant}: peak {peak:.0f} MB per rank, "
            f"target {MEMORY_TARGET:.2f} x {memory[base][1]:.0f} ({base}){rows}"
        )
    return lines


def _verdict(met: bool) -> str:
    return "met" if met else "**MISSED**"


def write(page: Path, raw: Path) -> None:
    """Write the page and the plot from the raw results of every setup that was measured."""
    results = {
        name: json.loads(file.read_text()) for name in SETUPS if (file := raw / f"{name}.json").is_file()
    }
    picture = page.parent / "images" / "step_cost.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot(results, picture)
    lines = [
        "# Cost of a step",
        "",
        "Written by `python bench/step_cost.py --write docs/benchmarks.md` on "
        f"{datetime.date.today().isoformat()}: {_cpu_name()}, {os.cpu_count()} cores, gloo, "
        f"one thread per rank, {_load(results)}.",
        "",
        _EXPLANATION,
        "",
        f"![cost against K, D and model size]({picture.relative_to(page.parent).as_posix()})",
        "",
        "## Targets",
        "",
        *verdicts(results),
        *(f"- **not measured**: {setup.title}" for name, (setup, _) in SETUPS.items() if name not in results),
        "",
        "## Measurements",
        "",
        *(line for result in results.values() for line in table(result)),
    ]
    page.write_text("\n".join(lines).rstrip() + "\n")


_EXPLANATION = """\
All variants of a table take turns step by step in the same processes, each with a model and an optimizer of
its own, on the same batches (256 tokens per rank and pass: little compute per gradient, the hard case for
any exchange). `plain` is Megatron with its overlapped reduce-scatter, `fp32acc` Megatron with its own
`reduce_scatter_with_fp32_accumulation` (overlapped too), the others are Bucket-Level MOO as
METHOD[/BLOCK[/KEPT ROWS]], block `layer` unless named. gloo's reduce-scatter moves twice the ring's bytes,
so `fp32acc` is the fair base on a CPU. Ratios are medians of pairs with a 95 % interval from order
statistics. Wall time suffers from other users of the machine; CPU time (all threads of all ranks) does so
much less, but it does not see waiting.

`naive` keeps K whole gradients of the model in one process and solves once for the whole model; `torchjd`
does the same with TorchJD's `backward` and `jac_to_grad`. Both use torch's Adam on the same model, batches
and number of passes.

Bytes are counted where tensors are handed to `torch.distributed`, as the bytes that a ring would send; the
reduction of the Gramians carries the tokens per objective, so Megatron's own 4-byte reduction of the token
count is saved. Peak memory is that of tensors, per rank, in processes of their own: storages of all live
tensors between steps, plus the rise of the resident set during a step above its level between steps (the
kernel's high-water mark, with an allocator that returns freed memory at once)."""


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def _load(results: dict[str, dict[str, Any]]) -> str:
    """How busy the machine was with other work, from the load average before each run."""
    loads = [result["load"] for result in results.values() if "load" in result]
    if not loads:
        return "load not recorded"
    return f"load average before the runs {min(loads):.1f} to {max(loads):.1f} (0 would be a free machine)"


def plot(results: dict[str, dict[str, Any]], picture: Path) -> None:
    """Wall and CPU time against K, D and model size, as ratios to fp32acc."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.6), sharey=True, layout="constrained")
    for axis, (label, places) in zip(axes, PANELS, strict=True):
        axis.axhline(1.0, color="0.7", linewidth=1)
        shift = 0.97**1.5  # series side by side, so that intervals do not hide each other
        for method, colour in (("mgda", "#1f6f8b"), ("cagrad", "#c8553d")):
            for kind, style in (
                ("wall", {"marker": "o"}),
                ("cpu", {"marker": "s", "mfc": "white", "ls": "--"}),
            ):
                points = _points(results, places, method, kind)
                if points:
                    x, y, low, high = zip(*points, strict=True)
                    x, shift = [value * shift for value in x], shift / 0.97
                    error = [
                        [a - b for a, b in zip(y, low, strict=True)],
                        [b - a for a, b in zip(y, high, strict=True)],
                    ]
                    label_ = f"{method}, {'wall' if kind == 'wall' else 'CPU'} time"
                    axis.errorbar(
                        x, y, yerr=error, color=colour, capsize=3, linewidth=1.2, label=label_, **style
                    )
        axis.set_xscale("log", base=2)
        axis.set_xticks(ticks := [place for place, *_ in _points(results, places, "mgda", "wall")])
        axis.set_xticklabels([f"{tick:.0f}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("time of a step / fp32acc")
    axes[-1].legend(frameon=False, fontsize=8)
    figure.savefig(picture, dpi=130)


def _points(
    results: dict[str, dict[str, Any]], places: dict[str, int | None], method: str, kind: str
) -> list[tuple[float, float, float, float]]:
    points = []
    for name, place in places.items():
        if name in results:
            result = results[name]
            x = place or result["parameters"] / 1e6
            points.append((x, *paired(result[kind][method], result[kind]["fp32acc"])))
    return points
