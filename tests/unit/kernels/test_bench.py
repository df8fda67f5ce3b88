"""Every row of the GPU benchmark's tables runs, at tiny sizes: with the twins and under Triton's interpreter."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

BENCH = Path(__file__).resolve().parents[3] / "bench"
KERNELS = (
    "gramian, float32",
    "combine, float32",
    "gramian, bfloat16",
    "combine, bfloat16",
    "gramian, float32, segments at odd places",
    "combine, float32, segments at odd places",
    "gramian, packed fp8",
    "combine, packed fp8",
    "gramian, float32, rows and result at odd places",
    "combine, float32, rows and result at odd places",
    "pack to fp8",
    "unpack",
    "RMSNorm forward, bf16",
    "RMSNorm backward, bf16",
)


@contextmanager
def bench_gpu() -> Iterator[Any]:
    """The module ``bench/gpu.py``, whose folder is no package."""
    with mock.patch.object(sys, "path", [str(BENCH), *sys.path]):
        yield importlib.import_module("gpu")


def tiny(gpu: Any) -> Any:
    """Sizes that take a moment on a CPU."""
    model = gpu.Shape(layers=1, hidden=8, ffn=16, kv=4, heads=2, vocab=24, tokens=4, lanes=2, bucket=400)
    return gpu.Sizes(
        torch.device("cpu"), k=2, values=300, segments=3, blocks=1, norm=(3, 20), model=model, room=1 << 20,
        repetitions=1,
    )  # fmt: skip


def check_lines(lines: list[str]) -> None:
    """All rows are there, and a number in each."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    named = {cells[0]: cells[1:] for cells in rows}
    assert {*KERNELS, "copy", "mgda", "cagrad", "upgrad", "dualproj"} <= named.keys()
    assert all(float(named[name][0]) >= 0 for name in KERNELS)
    assert "1 layers at 2 lanes" in lines[-1] and lines[-1].endswith("%.")


def check_table(_device: str) -> None:
    """The page's lines with the Triton kernels in every place in which a GPU has them."""
    launched: set[str] = set()

    def counted(name: str, launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kw: Any) -> Any:
            launched.add(name)
            return launch(*args, **kw)

        return run

    launches = {
        "gramian": ("launch_gramian",),
        "combine": ("launch_combine",),
        "pack": ("launch_pack", "launch_unpack"),
        "norms": ("launch_forward", "launch_backward"),
        "solve": ("launch_solve",),
    }
    with bench_gpu() as gpu, ExitStack() as stack:
        for room, names in launches.items():
            place = f"megatron_moo.kernels.{room}"
            stack.enter_context(mock.patch(f"{place}.on_triton", return_value=True))
            module = importlib.import_module(f"{place}_triton")
            for name in names:
                stack.enter_context(mock.patch.object(module, name, counted(name, getattr(module, name))))
        # On a GPU one launch serves all segments of a bucket.
        stack.enter_context(mock.patch("megatron_moo.buckets.step.MooStep._at_once", return_value=True))
        check_lines(gpu.measure(tiny(gpu)))
    assert launched == {name for names in launches.values() for name in names}


def test_rows_of_the_wire_come_back_to_their_parameters() -> None:
    """``bench/wire_blocks.py`` rounds rows as they lie in the buffer; every value is near what it was."""
    with mock.patch.object(sys, "path", [str(BENCH), *sys.path]):
        bench = importlib.import_module("wire_blocks")
    rows = [torch.randn(3, *shape) for shape in ((5, 7), (130,), (1,))]
    for piece, bf16, fp8 in zip(rows, bench.rounded(rows, "bf16"), bench.rounded(rows, "fp8"), strict=True):
        assert torch.equal(bf16, piece.bfloat16().float())
        torch.testing.assert_close(fp8, piece, rtol=2**-4, atol=2**-8)


def test_every_row_runs_with_the_twins() -> None:
    with bench_gpu() as gpu:
        check_lines(gpu.measure(tiny(gpu)))


def test_every_row_runs_with_the_kernels(interpreted: Callable[..., Any]) -> None:
    interpreted(check_table, "cpu")


def test_the_step_is_the_steps_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is timed resolves as training does: reduction, solve and combination of every bucket."""
    from megatron_moo.buckets.step import MooStep

    calls: list[str] = []
    for name in ("arrived", "resolve", "_reduced", "_apply"):
        stock = getattr(MooStep, name)

        def noted(step: Any, *args: Any, _stock: Any = stock, _name: str = name) -> Any:
            calls.append(_name)
            return _stock(step, *args)

        monkeypatch.setattr(MooStep, name, noted)
    with bench_gpu() as gpu:
        sizes = tiny(gpu)
        step = gpu.moo_seconds(sizes.model, sizes.device, 1)
        buckets = len(sizes.model.buckets())
    assert calls == [*buckets * ["arrived"], "resolve", "_reduced", "_apply"]
    assert buckets > 1 and step[0] > 0 and all(step[1][name] > 0 for name in ("gramian", "solve", "combine"))


def test_the_shape_is_llama_3_8b() -> None:
    with bench_gpu() as gpu:
        shape = gpu.Shape()
    assert sum(size for _, size in shape.parameters()) == 8_030_261_248
    buckets = shape.buckets()
    assert all(size % shape.lanes == 0 for _, size in buckets) and len(buckets) > 60
    assert shape.fitting(80 << 30).layers == 32 and 0 < shape.fitting(24 << 30).layers < 32
    with pytest.raises(MemoryError):
        shape.fitting(1 << 30)
