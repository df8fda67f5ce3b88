"""What the kernels reach of a GPU's copy bandwidth, the batched solve, and MOO's part of an 8B model's step.

    make bench-gpu                                            prints the table
    python bench/gpu.py --write docs/benchmarks-gpu.md        writes it, with the card's name

Without a GPU it says so, and writes a page that shows no number.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from _gpu_step import Shape, backward_seconds, moo_seconds, seconds

from megatron_moo.kernels import (
    PackedRows,
    SegmentTable,
    combine_segments,
    gramian_segments,
    pack_rows,
    packed_bytes,
    rms_norm,
    solve_blocks,
    unpack,
)
from megatron_moo.kernels.rows import Rows
from megatron_moo.kernels.solve import SOLVED
from megatron_moo.moo import make_method

HEAD = """\
# The kernels on a GPU

`make bench-gpu` measures this; `python bench/gpu.py --write docs/benchmarks-gpu.md` wrote the page. Bandwidth is a
share of what a copy of the same size reaches on the same card in the same run.

"""
NONE = (
    "No GPU was at hand when this page was written: it shows no number. Under Triton's interpreter every kernel\n"
    "equals its twin (`tests/unit/kernels`), and all compile ahead for sm_80 and sm_90. Every row of the benchmark\n"
    "runs there too, at tiny sizes (`tests/unit/kernels/test_bench.py`); that measures nothing.\n"
)
MIB = 1 << 20


@dataclass(frozen=True)
class Sizes:
    """What is measured, and where.

    Attributes:
        k: rows. values: of each. segments: blocks of a shard.
        blocks: of the batched solve.
        norm: ``[rows, width]`` of the RMSNorm.
        model: whose step is measured.
        room: bytes that the step's gradients may take, None for what the device has.
        repetitions: runs of each, of which the median counts.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cuda"))
    k: int = 8
    values: int = 64 * MIB
    segments: int = 32
    blocks: int = 512
    norm: tuple[int, int] = (8192, 4096)
    model: Shape = field(default_factory=Shape)
    room: int | None = None
    repetitions: int = 20

    def seconds(self, run: Callable[[], object]) -> float:
        """Median of single runs."""
        return seconds(run, self.device, self.repetitions)


def table_of(values: int, blocks: int, odd: int = 0) -> SegmentTable:
    """``blocks`` segments of about equal size; with ``odd`` most begin at a value that no vector load begins at."""
    cuts = [block * (values // blocks) for block in range(blocks)]
    cuts = [cut + odd * (block % 4) for block, cut in enumerate(cuts)]
    ends = [*cuts[1:], values]
    return SegmentTable(
        (start, end, block) for block, (start, end) in enumerate(zip(cuts, ends, strict=True))
    )


class Bandwidth:
    """Rows of the first table: (kernel, share of the copy's bandwidth, target or None, GB/s) in ``found``."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.new = partial(torch.randn, device=sizes.device)
        source = self.new(sizes.k * sizes.values // 4)
        target = torch.empty_like(source)
        self.copied = 2 * 4 * source.numel() / sizes.seconds(lambda: target.copy_(source))
        self.found: list[tuple[str, float, float | None, float]] = [("copy", 1.0, None, self.copied / 1e9)]

    def row(self, name: str, moved: float, run: Callable[[], object], aim: float | None = None) -> None:
        """Time ``run``, which reads and writes ``moved`` bytes."""
        reached = moved / self.sizes.seconds(run)
        self.found.append((name, reached / self.copied, aim, reached / 1e9))

    def both(
        self, name: str, rows: Rows, read: float, odd: int = 0, shift: int = 0, aim: float | None = 0.85
    ) -> None:
        """Gramian and combination of rows that hold ``read`` bytes."""
        sizes = self.sizes
        table = table_of(sizes.values, sizes.segments, odd)
        weights = torch.rand(sizes.segments, sizes.k, device=sizes.device, dtype=torch.float64) + 0.1
        out = torch.empty(sizes.values + shift, device=sizes.device)[shift:]
        self.row(f"gramian, {name}", read, lambda: gramian_segments([rows], table), aim)
        self.row(
            f"combine, {name}", read + 4 * sizes.values,
            lambda: combine_segments([rows], weights, table, out), aim,
        )  # fmt: skip

    def measure(self) -> None:
        """All rows."""
        k, values = self.sizes.k, self.sizes.values
        for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
            self.both(str(dtype).removeprefix("torch."), self.new(k, values, dtype=dtype), size * k * values)
        rows = self.new(k, values)
        self.both("float32, segments at odd places", rows, 4 * k * values, odd=1)
        self.packed(rows)
        # Every row begins one value later than the one before in its vector.
        rows = self.new(k, values + 1)[:, 1:]
        self.both("float32, rows and result at odd places", rows, 4 * k * values, shift=1, aim=None)
        rows = torch.empty(0)
        self.norms()

    def packed(self, rows: torch.Tensor) -> None:
        """Rows to fp8, from fp8, and what reads them as fp8."""
        k, values = rows.shape
        size = packed_bytes(values) * k
        self.row("pack to fp8", 4 * rows.numel() + size, partial(pack_rows, rows), 0.80)
        packed = PackedRows(pack_rows(rows), values)
        self.row("unpack", 4 * rows.numel() + size, partial(unpack, packed, out=rows))
        self.both("packed fp8", packed, size)

    def norms(self) -> None:
        """RMSNorm in bf16: forward reads x and writes y, backward reads the gradient and x and writes x's."""
        x = self.new(*self.sizes.norm, dtype=torch.bfloat16).requires_grad_()
        weight = torch.ones(self.sizes.norm[1], device=self.sizes.device, requires_grad=True)
        up = torch.randn_like(x)
        self.row("RMSNorm forward, bf16", 2 * 2 * x.numel(), lambda: rms_norm(x, weight))
        y = rms_norm(x, weight)
        self.row(
            "RMSNorm backward, bf16", 3 * 2 * x.numel(),
            lambda: torch.autograd.grad(y, (x, weight), up, retain_graph=True),
        )  # fmt: skip


def solves(sizes: Sizes) -> list[tuple[str, float]]:
    """(method, seconds) for many blocks."""
    J = torch.randn(sizes.blocks, sizes.k, 64, device=sizes.device, dtype=torch.float64)
    gramians = J @ J.mT
    return [(name, sizes.seconds(partial(solve_blocks, make_method(name), gramians))) for name in SOLVED]


def whole_step(sizes: Sizes) -> str:
    """A sentence about MOO's seconds in a step of a model, and those of the model's backward pass."""
    room = sizes.room
    if room is None:
        room = int(0.9 * torch.cuda.mem_get_info(sizes.device)[0])
    shape = sizes.model.fitting(room)
    moo, phases = moo_seconds(shape, sizes.device, sizes.repetitions)
    if sizes.device.type == "cuda":
        torch.cuda.empty_cache()
    backward = backward_seconds(shape, sizes.device, sizes.repetitions)
    part = (
        ""
        if shape.layers == sizes.model.layers
        else f" (the {shape.layers} that fit of {sizes.model.layers})"
    )
    parts = ", ".join(
        f"{name} {phases[name] * 1e3:.1f}" for name in ("gramian", "exchange", "solve", "combine")
    )
    parameters = sum(size for _, size in shape.parameters())
    return (
        f"A model of {parameters / 1e9:.2f}B parameters in {shape.layers} layers{part} at {shape.lanes} lanes, "
        f"{shape.tokens} tokens a rank: MOO's own step, one rank of {shape.lanes} in one process without the wire, "
        f"{moo * 1e3:.1f} ms (in ms: {parts}; exchange is the reduction of the Gramians), the backward pass of its "
        f"layers {backward * 1e3:.0f} ms: {100 * moo / backward:.1f} %."
    )


def measure(sizes: Sizes) -> list[str]:
    """The page's numbers."""
    on_gpu = sizes.device.type == "cuda"
    card = torch.cuda.get_device_name(sizes.device) if on_gpu else "CPU"
    lines = [
        f"{card}, torch {torch.__version__}; K = {sizes.k} rows of {sizes.values / MIB:g}M values.",
        "",
        "| kernel | of a copy's bandwidth | target | GB/s |",
        "| --- | --- | --- | --- |",
    ]
    bandwidth = Bandwidth(sizes)
    bandwidth.measure()
    for name, share, aim, speed in bandwidth.found:
        lines.append(f"| {name} | {share:.2f} | {'' if aim is None else aim} | {speed:.0f} |")
    lines += ["", f"| solve of {sizes.blocks} blocks, K = {sizes.k} | ms (target 0.3) |", "| --- | --- |"]
    lines += [f"| {name} | {took * 1e3:.3f} |" for name, took in solves(sizes)]
    if on_gpu:
        torch.cuda.empty_cache()
    return [*lines, "", whole_step(sizes)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", type=Path, help="write the page there")
    options = parser.parse_args()
    text = "\n".join(measure(Sizes())) + "\n" if torch.cuda.is_available() else NONE
    if options.write:
        options.write.write_text(HEAD + text, encoding="utf-8")
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
