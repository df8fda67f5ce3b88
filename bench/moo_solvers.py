"""Weights per second: our batched solvers beside TorchJD's weighting on the same Gramians, one CPU thread.

    python bench/moo_solvers.py [--write docs/solver-speed.md] [--quick]

Times are CPU time of this process (one thread: the wall time of an idle core), the best of several runs. TorchJD takes
one Gramian at a time; at sizes other than B = 512, K = 8 it is timed on the first 32 only and the time multiplied, as
marked by ~. ConFIG gets the Jacobians, which is what TorchJD takes there.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torchjd import aggregation as tj

from megatron_moo.moo import make_method

WANTED = {"mgda": 50, "cagrad": 50, "fairgrad": 10, "dualproj": 2, "upgrad": 1, "pcgrad": 1}
WANTED |= {"imtl_g": 1, "aligned_mtl": 1, "config": 1}
THEIRS: dict[str, Callable[[], torch.nn.Module]] = {
    "mgda": tj.MGDAWeighting,
    "cagrad": partial(tj.CAGradWeighting, c=0.5),
    "fairgrad": partial(tj.FairGradWeighting, alpha=1.0),
    "dualproj": tj.DualProjWeighting,
    "upgrad": tj.UPGradWeighting,
    "pcgrad": tj.PCGradWeighting,
    "imtl_g": tj.IMTLGWeighting,
    "aligned_mtl": tj.AlignedMTLWeighting,
    "config": tj.ConFIG,
}
MAIN = (512, 8)
OTHERS = [(1, 8), (32, 8), (4096, 8), (512, 2), (512, 4), (512, 16)]


def cpu_ms(work: Callable[[], object], runs: int) -> float:
    """Best CPU time of ``runs`` calls after one to warm up, in milliseconds."""
    work()
    best = float("inf")
    for _ in range(runs):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return 1e3 * best


def measure(name: str, J: torch.Tensor, limit: int) -> tuple[float, float | None, bool]:
    """(ours, theirs, whether theirs was scaled up) in milliseconds for all Gramians of ``J [B, K, n]``.

    Theirs is None without the packages that it needs: its projections call quadprog, which is GPL and no requirement
    of ours (``pip install quadprog qpsolvers`` to compare).
    """
    G = J @ J.mT
    ours = cpu_ms(partial(make_method(name), G), 10 if len(G) <= 512 else 4)
    items = (J if name == "config" else G)[:limit]
    try:
        weighting = THEIRS[name]()
    except ImportError:
        return ours, None, False
    theirs = cpu_ms(lambda: [weighting(item) for item in items], 3 if len(items) <= 64 else 1)
    return ours, theirs * len(G) / len(items), len(items) < len(G)


def table(sizes: list[tuple[int, int]], limit_of: Callable[[int, int], int], wanted: bool) -> list[str]:
    """Markdown lines, one per method and size."""
    lines = ["| method | B | K | ours, ms | TorchJD, ms | times as fast |" + (" wanted |" if wanted else "")]
    lines.append("|---|---|---|---|---|---|" + ("---|" if wanted else ""))
    for batch, k in sizes:
        generator = torch.Generator().manual_seed(k)
        J = torch.randn(batch, k, 3 * k, generator=generator, dtype=torch.float64)
        for name in THEIRS:
            ours, theirs, scaled = measure(name, J, limit_of(batch, k))
            cells = [name, str(batch), str(k), f"{ours:.2f}"]
            if theirs is None:
                cells += ["not installed", "-"]
            else:
                cells += [f"{'~' if scaled else ''}{theirs:.1f}", f"{theirs / ours:.1f}"]
            lines.append("| " + " | ".join([*cells, *([f">= {WANTED[name]}"] if wanted else [])]) + " |")
    return lines


def linear() -> list[str]:
    """Time per block as B grows."""
    lines = ["| method | us a block at B = 512 | at B = 4096 |", "|---|---|---|"]
    J = torch.randn(4096, 8, 24, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    G = J @ J.mT
    for name in THEIRS:
        method = make_method(name)
        small, large = (1e3 * cpu_ms(partial(method, G[:b]), 3) / b for b in (512, 4096))
        lines.append(f"| {name} | {small:.1f} | {large:.1f} |")
    return lines


def page(quick: bool) -> str:
    """The whole report in Markdown."""
    head = [
        "# Speed of the solvers",
        "",
        "Made by `python bench/moo_solvers.py --write docs/solver-speed.md` (part of `make bench`): fp64, random rows,",
        "one CPU thread, CPU time, best of several runs; ~: TorchJD timed on some of the Gramians and multiplied.",
        "",
        f"## B = {MAIN[0]} blocks, K = {MAIN[1]}",
        "",
        *table([MAIN], lambda batch, k: 64 if quick else batch, wanted=True),
    ]
    if quick:
        return "\n".join(head) + "\n"
    note = [
        "",
        "## Other sizes",
        "",
        "The number of steps is fixed, so that nothing waits for the device; it costs some milliseconds however few",
        "the blocks are. For one block, and for upgrad at K = 16, one Gramian after another through TorchJD is as",
        "fast or faster; the gain is in the batch (and on a GPU, which it never makes wait).",
        "",
    ]
    rest = [*note, *table(OTHERS, lambda batch, k: 32, wanted=False)]
    return "\n".join([*head, *rest, "", "## Cost is linear in B (K = 8)", "", *linear()]) + "\n"


def main() -> None:
    """Print the report, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="also write the page to this file")
    parser.add_argument("--quick", action="store_true", help="only B = 512, K = 8, TorchJD on 64 of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Solution may be inaccurate")
    text = page(arguments.quick)
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
