"""What the kernels reach of a GPU's copy bandwidth, the batched solve, and MOO's part of an 8B model's step.

    make bench-gpu                                            prints the table
    python bench/gpu.py --write docs/benchmarks-gpu.md        writes it, with the card's name

Without a GPU it says so, and writes a page that shows no number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from megatron_moo.kernels import (
    SegmentTable,
    combine_segments,
    gramian_segments,
    pack_rows,
    rms_norm,
    solve_blocks,
    unpack,
)
from megatron_moo.kernels.solve import SOLVED
from megatron_moo.moo import make_method

HEAD = """\
# The kernels on a GPU

`make bench-gpu` measures this; `python bench/gpu.py --write docs/benchmarks-gpu.md` wrote the page. Bandwidth is a
share of what a copy of the same size reaches on the same card in the same run.

"""
NONE = (
    "No GPU was at hand when this page was written: it shows no number. Under Triton's interpreter every kernel\n"
    "equals its twin (`tests/unit/kernels`), and all compile ahead for sm_80 and sm_90.\n"
)
MIB = 1 << 20
K, VALUES, BLOCKS = 8, 64 * MIB, 512
# Llama-3-8B: layers, hidden, MLP, key and value width, tokens of a micro-batch.
LAYERS, HIDDEN, FFN, KV, TOKENS = 32, 4096, 14336, 1024, 8192
PARAMETERS, LANES, BUCKET = 8_030_261_248, 8, 40_000_000


def seconds(run: Callable[[], object], repetitions: int = 20) -> float:
    """Median of single launches, by events."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repetitions):
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(times)


def table_of(values: int, blocks: int) -> SegmentTable:
    """``blocks`` equal segments."""
    each = values // blocks
    return SegmentTable((block * each, (block + 1) * each, block) for block in range(blocks))


def bandwidth() -> list[tuple[str, float, float | None, float]]:
    """(kernel, share of the copy's bandwidth, target or None, GB/s)."""
    source = torch.randn(K * VALUES // 4, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * 4 * source.numel() / seconds(lambda: target.copy_(source))
    found: list[tuple[str, float, float | None, float]] = [("copy", 1.0, None, copied / 1e9)]
    source = target = torch.empty(0)

    def row(name: str, moved: float, run: Callable[[], object], aim: float | None) -> None:
        reached = moved / seconds(run)
        found.append((name, reached / copied, aim, reached / 1e9))

    table = table_of(VALUES, 32)
    weights = torch.rand(32, K, device="cuda", dtype=torch.float64)
    out = torch.empty(VALUES, device="cuda")
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        rows = torch.randn(K, VALUES, device="cuda", dtype=dtype)
        name = str(dtype).removeprefix("torch.")
        row(f"gramian, {name}", size * K * VALUES, lambda r=rows: gramian_segments([r], table), 0.85)
        row(
            f"combine, {name}", (size * K + 4) * VALUES,
            lambda r=rows: combine_segments([r], weights, table, out), 0.85,
        )  # fmt: skip
        if dtype == torch.float32:
            moved = (4 + 132 / 128) * K * VALUES
            row("pack to fp8", moved, partial(pack_rows, rows), 0.80)
            row("unpack", moved, partial(unpack_all, pack_rows(rows), rows), None)
        rows = torch.empty(0)
    x, weight = (
        torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16),
        torch.ones(HIDDEN, device="cuda"),
    )
    row("RMSNorm forward, bf16", 2 * 2 * x.numel(), lambda: rms_norm(x, weight), None)
    return found


def unpack_all(packed: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Packed rows back to fp32, in place."""
    from megatron_moo.kernels import PackedRows

    return unpack(PackedRows(packed, rows.shape[1]), out=rows)


def solves() -> list[tuple[str, float]]:
    """(method, seconds) for 512 blocks of 8 rows."""
    J = torch.randn(BLOCKS, K, 64, device="cuda", dtype=torch.float64)
    gramians = J @ J.mT
    return [(name, seconds(partial(solve_blocks, make_method(name), gramians))) for name in SOLVED]


def whole_step() -> tuple[float, float]:
    """Seconds of MOO in a step of an 8B model at 8 lanes, and of that model's backward pass.

    MOO: for every bucket Gramian and combination of 8 rows of the shard, and one solve. The wire itself is not here.
    Backward: twice the matrix products of the forward pass, in bf16, and the products of attention.
    """
    shard = BUCKET // LANES
    rows = torch.randn(K, shard, device="cuda")
    table, out = table_of(shard, 2), torch.empty(shard, device="cuda")
    weights = torch.rand(2, K, device="cuda", dtype=torch.float64)

    def bucket() -> None:
        gramian_segments([rows], table)
        combine_segments([rows], weights, table, out, norms=False)

    moo = seconds(bucket) * PARAMETERS / BUCKET + dict(solves())["cagrad"]
    x = torch.randn(TOKENS, HIDDEN, device="cuda", dtype=torch.bfloat16)
    shapes = [(HIDDEN, HIDDEN)] * 2 + [(HIDDEN, KV)] * 2 + [(HIDDEN, FFN)] * 2 + [(FFN, HIDDEN)]
    products = 0.0
    for into, outof in shapes:
        a, w = (
            torch.randn(TOKENS, into, device="cuda", dtype=x.dtype),
            torch.randn(into, outof, device="cuda", dtype=x.dtype),
        )
        g = torch.randn(TOKENS, outof, device="cuda", dtype=x.dtype)
        products += seconds(lambda a=a, w=w, g=g: (g @ w.T, a.T @ g))
    q = torch.randn(1, 32, TOKENS, 128, device="cuda", dtype=x.dtype, requires_grad=True)
    attended = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    up = torch.randn_like(attended)
    products += seconds(lambda: torch.autograd.grad(attended, q, up, retain_graph=True))
    return moo, LAYERS * products


def measure() -> list[str]:
    """The page's numbers."""
    lines = [
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; K = {K} rows of {VALUES // MIB}M values.",
        "",
        "| kernel | of a copy's bandwidth | target | GB/s |",
        "| --- | --- | --- | --- |",
    ]
    for name, share, aim, speed in bandwidth():
        lines.append(f"| {name} | {share:.2f} | {'' if aim is None else aim} | {speed:.0f} |")
    lines += ["", f"| solve of {BLOCKS} blocks, K = {K} | ms (target 0.3) |", "| --- | --- |"]
    lines += [f"| {name} | {took * 1e3:.3f} |" for name, took in solves()]
    moo, backward = whole_step()
    lines += [
        "",
        f"An 8B model at {LANES} lanes, {TOKENS} tokens a rank: MOO (parking, Gramians, solve, combination; without "
        f"the wire) {moo * 1e3:.1f} ms, its backward pass {backward * 1e3:.0f} ms: {100 * moo / backward:.1f} %.",
    ]
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="write the page there")
    options = parser.parse_args()
    text = "\n".join(measure()) + "\n" if torch.cuda.is_available() else NONE
    if options.write:
        options.write.write_text(HEAD + text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
