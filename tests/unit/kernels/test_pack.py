"""The packed wire format and its torch twin, held against every fp8 number there is."""

from __future__ import annotations

import math

import pytest
import torch

from megatron_moo.kernels import PackedRows, SegmentTable, gramian_segments, pack_rows, packed_bytes, unpack
from megatron_moo.kernels.pack import LAYOUTS, uniform
from tests.unit.kernels import checks

FORMATS = ["e4m3", "e5m2"]


def numbers(format: str) -> torch.Tensor:
    """All finite numbers of a format, fp64 ascending, from the formats' definition."""
    fp8 = LAYOUTS[format]
    steps = 2**fp8.mantissa
    small = [i * 2.0 ** (fp8.low - fp8.mantissa) for i in range(steps)]
    normal = [(1 + i / steps) * 2.0**e for e in range(fp8.low, fp8.high + 1) for i in range(steps)]
    positive = [x for x in (*small, *normal) if x <= fp8.largest]
    return torch.tensor(sorted({*positive, *(-x for x in positive)}), dtype=torch.float64)


def test_bytes_are_a_quarter_and_three_per_cent() -> None:
    assert [packed_bytes(n) for n in (0, 1, 128, 129, 1280)] == [0, 132, 132, 264, 1320]
    assert packed_bytes(1 << 20) / (4 << 20) == 0.25 * (1 + 1 / 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("format", FORMATS)
def test_every_value_becomes_the_nearest_number(format: str, dtype: torch.dtype) -> None:
    x = (checks.random(2, 1000) * torch.logspace(-30, 30, 1000)).to(dtype)
    packed = PackedRows(pack_rows(x, format=format), 1000, format)
    found = unpack(packed)
    scale = packed.scales.repeat_interleave(128, 1)[:, :1000].double()
    assert torch.equal(scale.log2(), scale.log2().round())
    table = numbers(format)
    distance = ((x.double() / scale)[:, :, None] - table).abs()
    assert torch.equal((x.double() - found.double()).abs() / scale, distance.amin(2))
    assert found.abs().amax() <= LAYOUTS[format].largest * scale.amax()


@pytest.mark.parametrize("format", FORMATS)
def test_ties_go_to_even(format: str) -> None:
    ulp = 2.0 ** -LAYOUTS[format].mantissa
    x = torch.tensor([[1 + 0.5 * ulp, 1 + 1.5 * ulp, -1 - 0.5 * ulp, 1.75]])
    assert unpack(PackedRows(pack_rows(x, format=format), 4, format)).tolist() == [[1, 1 + 2 * ulp, -1, 1.75]]


@pytest.mark.parametrize("format", FORMATS)
def test_the_scale_is_the_smallest_that_holds_the_block(format: str) -> None:
    for size in (1e-45, 1e-39, 3e-20, 1.0, 1.7500001, 448.0, 449.0, 57344.0, 1e30):
        x = torch.full((1, 128), size)
        scale = PackedRows(pack_rows(x, format=format), 128, format).scales.double().item()
        assert x.double().max() <= LAYOUTS[format].largest * scale
        assert scale == 2.0**-149 or x.double().max() > LAYOUTS[format].largest * scale / 2


@pytest.mark.parametrize("format", FORMATS)
def test_zeros_denormals_and_the_largest_numbers(format: str) -> None:
    zero = torch.zeros(1, 200)
    zero[0, 7] = -0.0
    back = unpack(PackedRows(pack_rows(zero, format=format), 200, format))
    assert torch.equal(back.view(torch.int32), zero.view(torch.int32))
    few = torch.arange(2 ** (LAYOUTS[format].mantissa + 1) + 1)[None] * 2.0**-149
    assert torch.equal(unpack(PackedRows(pack_rows(few, format=format), few.shape[1], format)), few)
    large = torch.full((1, 128), torch.finfo(torch.float32).max)
    back = unpack(PackedRows(pack_rows(large, format=format), 128, format))
    assert back.isfinite().all() and (back / large >= 1 - 2.0 ** -LAYOUTS[format].mantissa).all()


@pytest.mark.parametrize("seed", [None, 5])
@pytest.mark.parametrize("format", FORMATS)
def test_what_is_not_finite_stays_visible_and_alone(format: str, seed: int | None) -> None:
    x = checks.random(1, 256)
    sound = unpack(PackedRows(pack_rows(x, format=format, seed=seed), 256, format))
    x[0, 3], x[0, 4], x[0, 5] = math.nan, math.inf, -math.inf
    back = unpack(PackedRows(pack_rows(x, format=format, seed=seed), 256, format))[0]
    if format == "e5m2":
        assert back[3].isnan() and back[4] == math.inf and back[5] == -math.inf
    else:
        assert back[3:6].isnan().all()
    assert back[6:].isfinite().all() and torch.equal(back[128:], sound[0, 128:])


def test_error_is_what_three_bits_of_mantissa_give() -> None:
    x = checks.random(4, 100_000)
    for format, expected in (("e4m3", 0.0265), ("e5m2", 0.053)):
        back = unpack(PackedRows(pack_rows(x, format=format), 100_000, format))
        assert ((back - x).norm() / x.norm()).item() == pytest.approx(expected, rel=0.02)


def test_stochastic_rounding_is_unbiased_and_repeats() -> None:
    x = checks.random(1, 4096) * 0.1

    def once(seed: int) -> torch.Tensor:
        return unpack(PackedRows(pack_rows(x, seed=seed), 4096))

    assert torch.equal(once(1), once(1)) and not torch.equal(once(1), once(2))
    mean = torch.stack([once(seed) for seed in range(400)]).mean(0)
    nearest = (unpack(PackedRows(pack_rows(x), 4096)) - x).norm()
    assert (
        mean - x
    ).norm() < 0.12 * nearest  # 1 / sqrt(400) of sqrt(2) times it, if the draws are independent


def test_uniform_numbers_are_uniform() -> None:
    u = uniform(torch.arange(1 << 16), 3).double()
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 4 / math.sqrt(12 << 16)
    counts = torch.histc(u, 64, 0, 1)
    chi2 = ((counts - 1024).square() / 1024).sum().item()
    assert 63 - 4 * math.sqrt(126) < chi2 < 63 + 4 * math.sqrt(126)
    pairs = torch.stack([u[:-1], u[1:]])
    assert abs(torch.corrcoef(pairs)[0, 1].item()) < 4 / 256
    other = uniform(torch.arange(1 << 16), 4).double()
    assert abs(torch.corrcoef(torch.stack([u, other]))[0, 1].item()) < 4 / 256


def test_error_feedback_makes_the_sum_right() -> None:
    """Sums over steps differ from the exact ones by what is held back, not by what was ever lost."""
    lost = torch.zeros(2, 500)
    sent = torch.zeros(2, 500, dtype=torch.float64)
    exact = torch.zeros(2, 500, dtype=torch.float64)
    for step in range(30):
        x = checks.random(2, 500, seed=step)
        exact += x.double()
        sent += unpack(PackedRows(pack_rows(x, residual=lost), 500)).double()
    torch.testing.assert_close(sent + lost, exact, rtol=0, atol=1e-4)
    assert lost.abs().max() < 0.3


def test_error_feedback_does_not_keep_what_is_not_finite() -> None:
    x = checks.random(1, 128)
    x[0, 5] = math.nan
    lost = torch.zeros(1, 128)
    pack_rows(x, residual=lost)
    assert lost.isfinite().all() and lost[0, 5] == 0


def test_rows_go_where_they_are_told() -> None:
    wide = torch.zeros(3, 264 + 132, dtype=torch.uint8)
    out = wide[:, :264]
    x = checks.random(3, 200)
    assert pack_rows(x, out) is out
    assert torch.equal(out, pack_rows(x)) and not wide[:, 264:].any()
    target = torch.empty(3, 200, dtype=torch.bfloat16)
    assert unpack(PackedRows(out, 200), target) is target
    assert torch.equal(target, unpack(PackedRows(out, 200)).bfloat16())


def test_gramian_of_packed_rows_is_that_of_the_numbers() -> None:
    x = checks.random(3, 70_000)
    packed = PackedRows(pack_rows(x), 70_000)
    table = SegmentTable([(5, 69_000, 0), (69_000, 69_001, 4)])
    found, bad = gramian_segments([packed, x.bfloat16()], table)
    exact = torch.cat([unpack(packed).double(), x.bfloat16().double()])
    assert not bad.any()
    torch.testing.assert_close(
        found[0], exact[:, 5:69_000] @ exact[:, 5:69_000].T, rtol=1e-6, atol=1e-6 * 69_000
    )
    torch.testing.assert_close(found[1], exact[:, 69_000:69_001] @ exact[:, 69_000:69_001].T)
    cosine = (found[0][:3, :3] / found[0].diagonal()[:3].sqrt() / found[0].diagonal()[:3].sqrt()[:, None]) - (
        torch.corrcoef(x.double())
    )
    assert cosine.abs().max() < 1e-2


@pytest.mark.parametrize(
    ("problem", "call"),
    [
        ("format", lambda x, packed: pack_rows(x, format="e3m4")),
        ("float64", lambda x, packed: pack_rows(x.double())),
        ("contiguous", lambda x, packed: pack_rows(x.T)),
        ("residual", lambda x, packed: pack_rows(x, residual=x[:1])),
        ("packed buffer", lambda x, packed: pack_rows(x, packed[:, 1:])),
        (
            "4 bytes",
            lambda x, packed: PackedRows(torch.zeros(2 * 133, dtype=torch.uint8).view(2, 133)[:, 1:], 9),
        ),
        ("2 rows", lambda x, packed: pack_rows(x[:1], packed)),
        ("out is", lambda x, packed: unpack(PackedRows(packed, 9), torch.empty(2, 8))),
        ("segments reach", lambda x, packed: gramian_segments([x], SegmentTable([(0, 10, 0)]))),
        ("33 rows", lambda x, packed: gramian_segments([torch.zeros(33, 9)], SegmentTable([(0, 9, 0)]))),
        ("float16", lambda x, packed: gramian_segments([x.half()], SegmentTable([(0, 9, 0)]))),
        ("of 9 and of 8", lambda x, packed: gramian_segments([x[:, :8], x], SegmentTable([(0, 8, 0)]))),
        ("segment", lambda x, packed: SegmentTable([(3, 2, 0)])),
    ],
)
def test_what_does_not_fit_is_named(problem: str, call: object) -> None:
    x = torch.zeros(2, 9)
    with pytest.raises(ValueError, match=problem):
        call(x, pack_rows(x))  # type: ignore[operator]


def test_table_keeps_the_kinds_that_count_and_cuts_at_multiples() -> None:
    table = SegmentTable([(0, 5, 2, 0), (5, 9, 1, 1), (9, 21, 7, 0), (21, 25, 2, 0)], kinds={0})
    assert table.blocks == (2, 7) and table.end == 25
    items, first = table.work(8, torch.device("cpu"))
    assert items.tolist() == [[0, 5, 2], [21, 24, 2], [24, 25, 2], [9, 16, 7], [16, 21, 7]]
    assert first.tolist() == [0, 3, 5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "mixed"])
def test_combine_of_segments(kind: str, dtype: torch.dtype) -> None:
    checks.twin_combine(kind, 8, dtype)
