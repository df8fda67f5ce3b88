"""Every kernel compiled ahead for sm_90 and sm_80, without a GPU: one that does not compile is found here.

What is read from the PTX are the properties that a speed depends on and that an innocent change can lose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from megatron_moo.kernels import (
    cagrad_triton,
    combine_triton,
    dual_triton,
    gramian_triton,
    mgda_triton,
    norms_triton,
    pack_triton,
    tiles_triton,
)
from megatron_moo.kernels.pack import LAYOUTS
from megatron_moo.kernels.solve_triton import CONE_ROUNDS, CONE_STEPS, EPS, NNLS_STEPS, warps

CAPABILITIES = [90, 80]


@dataclass(frozen=True)
class Case:
    """A kernel with types of its arguments in order (constants by name), as a launch would specialise it."""

    kernel: Callable[..., Any]
    types: tuple[str, ...]
    constants: dict[str, Any]
    warps: int = 4
    holds: tuple[str, ...] = ()
    aligned: bool = True

    def ptx(self, capability: int) -> str:
        names = self.kernel.arg_names  # type: ignore[attr-defined]
        plain = [name for name in names if name not in self.constants]
        types = dict(zip(plain, self.types, strict=True))
        signature = {name: types.get(name, "constexpr") for name in names}
        divisible = {
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if self.aligned and name in types and (types[name].startswith("*") or types[name] == "i32")
        }
        source = ASTSource(self.kernel, signature, self.constants, divisible)
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options={"num_warps": self.warps}).asm["ptx"]


def pack(rows: str, format: str, chance: bool, feedback: bool, **more: Any) -> Case:
    fp8 = LAYOUTS[format]
    constants = {
        "MANTISSA": fp8.mantissa, "LOW": fp8.low, "HIGH": fp8.high, "LARGEST": fp8.largest, "BELOW": fp8.below,
        "CHANCE": chance, "FEEDBACK": feedback, "GROUPS": pack_triton.GROUPS,
    }  # fmt: skip
    types = (rows, "i32", "*u8", "i32", "*fp32", "i32", "i32", "i32", "i32")
    return Case(pack_triton.pack_kernel, types, constants, **more)


def rows(k: int, f32: bool, bf16: bool, fp8: int, width: int) -> dict[str, Any]:
    kp = triton.next_power_of_2(k)
    return {"F32": f32, "BF16": bf16, "FP8": fp8, "ALIGNED": True, "K": k, "KP": kp, "E": width}


def gramian(k: int, *dtypes: Any, **more: Any) -> Case:
    constants = rows(k, *dtypes, 512 if k <= 8 else 128)
    return Case(gramian_triton.gramian_kernel, ("*i64", "*i64", "*fp64"), constants, **more)


def combine(k: int, out: str, *dtypes: Any, **more: Any) -> Case:
    constants = rows(k, *dtypes, 512 if k <= 8 else 256)
    constants |= {"OUT_ALIGNED": 16 if out == "*fp32" else 8, "MASKED": True, "NORMS": True}
    types = ("*i64", "*i64", "*fp64", out, "*fp64")
    return Case(combine_triton.combine_kernel, types, constants, **more)


def solver(kernel: Callable[..., Any], k: int) -> Case:
    kp = triton.next_power_of_2(k)
    constants = {"RIDGE": k * EPS, "K": k, "KP": kp}
    types = ("*fp64", "*fp64", "i32", "*fp64", "*i32")
    if kernel is not cagrad_triton.cagrad_kernel:
        return Case(kernel, types, {**constants, "STEPS": NNLS_STEPS}, warps(kp))
    constants |= {"STEPS": CONE_STEPS + k // 4, "ROUNDS": CONE_ROUNDS, "EPS": EPS}
    return Case(kernel, (*types, "*fp64"), constants, warps(kp))


NORM = {"ZERO_CENTERED": True, "WIDTH": 4096}
BACKWARD = ("*bf16", "*bf16", "*bf16", "*fp32", "*bf16", "*fp32", "i32", "i32")
CASES = {
    "pack fp32": pack("*fp32", "e4m3", False, False, holds=("ld.global.v4.b32", "st.global.v4.b32")),
    "pack bf16, all options": pack("*bf16", "e5m2", True, True, aligned=False),
    "unpack": Case(
        pack_triton.unpack_kernel,
        ("*u8", "i32", "*bf16", "i32", "i32"),
        {"MANTISSA": 3, "GROUPS": 32},
        holds=("ld.global.v4.b32",),
    ),
    "gramian fp32 K 8": gramian(8, True, False, 0, holds=("ld.global.v4.b32",)),
    "gramian fp8 K 8": gramian(8, False, False, 3, holds=("ld.global.b32",)),
    "gramian of all K 3": gramian(3, True, True, 2),
    "gramian fp32 K 32": gramian(32, True, False, 0),
    "gramian of all K 32": gramian(32, True, True, 3),
    "combine fp32 K 8": combine(8, "*fp32", True, False, 0, holds=("ld.global.v4.b32", "st.global.v4.b32")),
    "combine of all K 32": combine(32, "*bf16", True, True, 3),
    "sums": Case(
        tiles_triton.sums_kernel,
        ("*fp64", "*i64", "*fp64", "i32"),
        {"ROWS": 256, "COLUMNS": 16},
        aligned=False,
    ),
    "mgda K 8": solver(mgda_triton.mgda_kernel, 8),
    "mgda K 32": solver(mgda_triton.mgda_kernel, 32),
    "cagrad K 8": solver(cagrad_triton.cagrad_kernel, 8),
    "cagrad K 32": solver(cagrad_triton.cagrad_kernel, 32),
    "upgrad K 8": solver(dual_triton.upgrad_kernel, 8),
    "upgrad K 32": solver(dual_triton.upgrad_kernel, 32),
    "dualproj K 32": solver(dual_triton.dualproj_kernel, 32),
    "norm forward": Case(
        norms_triton.forward_kernel, ("*bf16", "*bf16", "*bf16", "*fp32", "i32", "fp32"), NORM, 8
    ),
    "norm backward": Case(norms_triton.backward_kernel, BACKWARD, NORM, 8),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", CASES)
def test_compiles(name: str, capability: int) -> None:
    ptx = CASES[name].ptx(capability)
    assert f".target sm_{capability}" in ptx
    assert all(instruction in ptx for instruction in CASES[name].holds)
    # Denormals must not be flushed: scales of 2^-149 and codes below the smallest normal are exact.
    assert ".ftz" not in ptx


def test_a_block_of_8_rows_is_solved_without_leaving_its_warp() -> None:
    for name in ("mgda K 8", "cagrad K 8"):
        assert "bar.sync" not in CASES[name].ptx(90) and "shared" not in CASES[name].ptx(90)
