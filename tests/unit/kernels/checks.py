"""What every kernel must do, for one case on one device: tests of the interpreter and of a GPU share it.

Each check calls the Triton form and holds it against fp64, or against the twin where the two agree in every bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from megatron_moo.kernels import (
    PackedRows,
    SegmentTable,
    combine_segments,
    gramian_segments,
    pack_rows,
    packed_bytes,
    unpack,
)
from megatron_moo.kernels.pack import LAYOUTS, pack_rows_torch
from megatron_moo.kernels.rows import Rows

# Everything that is odd about a shard: empty segments, one value, gaps, a block in two places, no alignment.
SEGMENTS = [(0, 17, 3), (17, 17, 5), (17, 5000, 1), (5000, 5001, 9), (5003, 9001, 3)]
WIDTH = 9001


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def awkward(n: int, dtype: torch.dtype) -> torch.Tensor:
    """Three rows ``[3, n]``: ordinary, of every magnitude, and of what has no ordinary scale."""
    rows = random(3, n, seed=n)
    rows[1] *= 2.0 ** torch.randint(-60, 60, (n,), generator=torch.Generator().manual_seed(n))
    tiny = torch.arange(n, dtype=torch.float32) * 2.0**-149  # denormals
    largest = torch.full((n,), torch.finfo(dtype).max)
    zero = torch.zeros(n)
    zero[::3] = -0.0
    rows[2] = torch.where(
        torch.arange(n) // 128 % 3 == 0, tiny, torch.where(torch.arange(n) // 128 % 3 == 1, largest, zero)
    )
    rows = rows.to(dtype)
    if dtype == torch.bfloat16:  # denormals of its own
        at = torch.arange(n) // 128 % 3 == 0
        rows[2, at] = (torch.arange(n)[at] % 128).to(torch.int16).view(torch.bfloat16)
    if n > 4:
        rows[0, n // 2], rows[1, 0] = math.nan, math.inf
        rows[1, n - 1], rows[0, 1] = -math.inf, -math.nan
    return rows


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal, NaN at the same places."""
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(0.0), b.nan_to_num(0.0))


def check_pack(
    device: str, n: int, dtype: torch.dtype, format: str, seed: int | None, feedback: bool, shift: int = 0
) -> None:
    """The bytes, the error feedback and the numbers unpacked are the twin's, bit for bit."""
    from megatron_moo.kernels.pack_triton import launch_pack, launch_unpack

    rows = awkward(n, dtype)
    lost = 0.01 * random(3, n, seed=1) if feedback else None
    expected = torch.zeros(3, packed_bytes(n), dtype=torch.uint8)
    on_device = _shifted(rows, device, shift)
    found = expected.clone().to(device)
    lost_on_device = None if lost is None else lost.clone().to(device)
    launch_pack(on_device, found, format, seed, lost_on_device)
    pack_rows_torch(rows, expected, format, seed, lost)
    assert torch.equal(found.cpu(), expected)
    if lost is not None and lost_on_device is not None:
        assert torch.equal(lost_on_device.cpu(), lost)
    for out_dtype in (torch.float32, torch.bfloat16):
        out = torch.empty(3, n, dtype=out_dtype, device=device)
        launch_unpack(PackedRows(found, n, format), out)
        assert same(out.cpu(), unpack(PackedRows(expected, n, format)).to(out_dtype))


def _shifted(rows: torch.Tensor, device: str, shift: int) -> torch.Tensor:
    wide = torch.zeros(rows.shape[0], rows.shape[1] + shift, dtype=rows.dtype, device=device)
    wide[:, shift:] = rows.to(device)
    return wide[:, shift:]


def check_chance(device: str, format: str) -> None:
    """Stochastic rounding of one value takes its two neighbours, with the shares that make it right on average."""
    from megatron_moo.kernels.pack_triton import launch_pack, launch_unpack

    n = 128 * 64
    ulp = 2.0 ** -LAYOUTS[format].mantissa
    rows = torch.full((1, n), 1.0 + 0.3 * ulp)
    rows[:, ::128] = 1.75  # the same scale everywhere
    packed = torch.empty(1, packed_bytes(n), dtype=torch.uint8, device=device)
    launch_pack(rows.to(device), packed, format, 11, None)
    out = torch.empty(1, n, device=device)
    launch_unpack(PackedRows(packed, n, format), out)
    values = out.cpu()[rows != 1.75]
    assert set(values.tolist()) == {1.0, 1.0 + ulp}
    share = (values > 1.0).double().mean().item()
    assert abs(share - 0.3) <= 4 * math.sqrt(0.3 * 0.7 / values.numel())


def rows_of(kind: str, k: int, device: str, shift: int = 0) -> tuple[list[Rows], torch.Tensor]:
    """Pieces on ``device`` and the K rows in fp64. ``mixed`` has all dtypes, in pieces."""
    plain = random(k, WIDTH + shift, seed=k)[:, shift:]
    if kind == "fp32":
        piece: Rows = _shifted(plain, device, shift) if shift else plain.to(device)
        return [piece], plain.double()
    if kind == "bf16":
        half = plain.bfloat16()
        return [_shifted(half, device, shift) if shift else half.to(device)], half.double()
    if kind in ("e4m3", "e5m2"):
        packed = PackedRows(pack_rows(plain, format=kind), WIDTH, kind)
        return [PackedRows(packed.buffer.to(device), WIDTH, kind)], unpack(packed).double()
    parts = [rows_of(name, count, device, shift) for name, count in mixture(k)]
    return [piece for pieces, _ in parts for piece in pieces], torch.cat([exact for _, exact in parts])


def mixture(k: int) -> Sequence[tuple[str, int]]:
    third = k // 3
    counts = (("bf16", third), ("e4m3", third), ("fp32", k - 2 * third))
    return [(name, count) for name, count in counts if count]


def check_gramian(device: str, kind: str, k: int, shift: int = 0) -> float:
    """Every block within 1e-6 of fp64, no value counted as bad; the largest error of a block by its diagonal."""
    from megatron_moo.kernels.gramian_triton import launch_gramian

    pieces, exact = rows_of(kind, k, device, shift)
    table = SegmentTable(SEGMENTS)
    found, bad = launch_gramian(pieces, table)
    assert found.dtype == torch.float64 and found.shape == (len(table.blocks), k, k)
    assert not bad.any()
    worst = 0.0
    for index, block in enumerate(table.blocks):
        parts = [exact[:, start:end] for start, end, of in SEGMENTS if of == block]
        expected = sum(part @ part.T for part in parts)
        assert isinstance(expected, torch.Tensor)
        worst = max(worst, ((found[index].cpu() - expected).abs().max() / expected.diagonal().max()).item())
    assert worst <= 1e-6
    return worst


def check_bad_values(device: str, kind: str) -> None:
    """NaN and Inf spoil the products of their row in their block alone, and are counted."""
    from megatron_moo.kernels.gramian_triton import launch_gramian

    x = random(3, WIDTH)
    x[1, 20], x[1, 4999], x[2, 8000], x[2, 17] = math.nan, math.inf, -math.inf, math.inf
    table = SegmentTable(SEGMENTS)
    piece: Rows = x.to(device)
    if kind != "fp32":
        piece = PackedRows(pack_rows(x, format=kind).to(device), WIDTH, kind)
    found, bad = (t.cpu() for t in launch_gramian([piece], table))
    at = {block: index for index, block in enumerate(table.blocks)}
    expected = torch.zeros(3, 3)
    expected[at[1]] = torch.tensor([0.0, 2.0, 1.0])
    expected[at[3]] = torch.tensor([0.0, 0.0, 1.0])
    assert torch.equal(bad, expected.double())
    sound = expected == 0
    pairs = sound[:, :, None] & sound[:, None, :]
    assert found[pairs].isfinite().all() and not found.diagonal(dim1=1, dim2=2)[~sound].isfinite().any()
    alone: Rows = x if isinstance(piece, torch.Tensor) else PackedRows(piece.buffer.cpu(), WIDTH, kind)
    twin, twin_bad = gramian_segments([alone], table)
    assert torch.equal(twin_bad, bad) and torch.equal(twin.isfinite(), found.isfinite())


def check_combine(device: str, kind: str, k: int, dtype: torch.dtype, shift: int = 0) -> float:
    """Every block within rounding of fp64, the squared norm of what was written, the gaps untouched.

    Returns the distance to fp64 by its norm.
    """
    from megatron_moo.kernels.combine_triton import launch_combine

    pieces, exact = rows_of(kind, k, device, shift)
    table = SegmentTable(SEGMENTS)
    coefficients = random(10, k, seed=7).double()
    out = torch.full((WIDTH + shift,), 123.0, dtype=dtype, device=device)[shift:]
    norms = launch_combine(pieces, coefficients.to(device), table, out, masked=True, norms=True)
    assert norms is not None
    return _check_update(out.cpu(), norms.cpu(), coefficients, exact, table)


def _check_update(
    out: torch.Tensor, norms: torch.Tensor, c: torch.Tensor, exact: torch.Tensor, table: SegmentTable
) -> float:
    expected = torch.full((WIDTH,), 123.0, dtype=torch.float64)
    squares = dict.fromkeys(table.blocks, 0.0)
    for start, end, block in table.segments:
        expected[start:end] = c[block] @ exact[:, start:end]
        squares[block] += out[start:end].double().square().sum().item()
    if out.dtype == torch.bfloat16:
        torch.testing.assert_close(out, expected.bfloat16(), rtol=2**-7, atol=1e-5)
        wrong = (out != expected.bfloat16()).double().mean().item()
        assert wrong <= 2e-3  # only where fp32 rounding crosses the middle of two bf16 numbers
    else:
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        norms, torch.tensor(list(squares.values()), dtype=torch.float64), rtol=1e-6, atol=0
    )
    written = torch.cat([torch.arange(start, end) for start, end, _ in table.segments])
    return ((out.double() - expected)[written].norm() / expected[written].norm()).item()


def check_combine_in_place(device: str, k: int) -> None:
    """Written over one of its rows, with a spoilt row that has no weight; the other rows stay."""
    from megatron_moo.kernels.combine_triton import launch_combine

    x = random(k + 1, WIDTH, seed=k)
    x[0] = math.nan
    buffer = x.clone().to(device)
    c = random(10, k + 1, seed=3).double()
    c[:, 0] = 0.0
    table = SegmentTable(SEGMENTS)
    out = buffer[k]
    norms = launch_combine([buffer], c.to(device), table, out, masked=True, norms=True)
    assert norms is not None
    for start, end, block in table.segments:
        expected = c[block, 1:] @ x[1:, start:end].double()
        torch.testing.assert_close(out[start:end].cpu().double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(buffer[1:k].cpu(), x[1:k])
    assert out[5001:5003].cpu().equal(x[k, 5001:5003])


def twin_combine(kind: str, k: int, dtype: torch.dtype) -> None:
    """The same of the torch twin."""
    pieces, exact = rows_of(kind, k, "cpu")
    table = SegmentTable(SEGMENTS)
    coefficients = random(10, k, seed=7).double()
    out = torch.full((WIDTH,), 123.0, dtype=dtype)
    norms = combine_segments(pieces, coefficients, table, out)
    assert norms is not None
    _check_update(out, norms, coefficients, exact, table)
