"""Gradients that a layer writes into ``main_grad`` itself, as Transformer Engine's fp8 layers do, reach MOO unchanged.

A stand-in takes the place of the fused weight-gradient kernel: it rounds both factors to fp8 and adds their product to
``main_grad``, so no gradient passes through autograd. No GPU and no Transformer Engine ran this.
"""

from __future__ import annotations

import types
from typing import Any

import pytest
import torch

from tests.distributed.assemble import whole_update
from tests.distributed.case import Case
from tests.distributed.matrix import OVERLAP, SEQUENCE, SMALL_BUCKETS
from tests.distributed.ranks import train_steps
from tests.pool import RankPool

CASES = (
    Case("dp 2, small buckets", dp=2, method="token", flags=SMALL_BUCKETS),
    Case("dp 2, 2 slots", dp=2, slots=2, objectives=4, method="token"),
    Case("tp 2, sp", dp=2, tp=2, method="token", flags=(*SEQUENCE, *OVERLAP)),
)


def fp8_worker(rank: int, world: int, case: Case, plain: bool, fused: bool = True) -> dict[str, Any]:
    """A step whose linear layers leave their weights' gradients in ``main_grad``."""
    from megatron.core.tensor_parallel import layers

    calls = [0]

    def rounded(x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax().clamp(min=1e-30) / 448.0
        return (x / scale).to(torch.float8_e4m3fn).float() * scale

    def wgrad(x: torch.Tensor, dy: torch.Tensor, main_grad: torch.Tensor) -> None:
        calls[0] += 1
        main_grad += rounded(dy).t() @ rounded(x)

    if fused:
        layers.fused_weight_gradient_mlp_cuda = types.SimpleNamespace(wgrad_gemm_accum_fp32=wgrad)
        torch.cuda.current_device = lambda: "cpu"  # type: ignore[assignment,return-value]
        for kind in (layers.ColumnParallelLinear, layers.RowParallelLinear):
            stock = kind.__init__

            def built(self: Any, *args: Any, _stock: Any = stock, **kw: Any) -> None:
                _stock(self, *args, **kw)
                self.gradient_accumulation_fusion = True

            kind.__init__ = built
    return {**train_steps(case, plain=plain), "calls": calls[0]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_main_gradients_arrive_as_they_are(pool: RankPool, case: Case) -> None:
    ours = pool.run(fp8_worker, case.world, case, plain=False)
    megatrons = pool.run(fp8_worker, case.world, case, plain=True)
    exact = pool.run(fp8_worker, case.world, case, plain=False, fused=False)
    assert all(rank["calls"] > 0 for rank in (*ours, *megatrons)) and not any(rank["calls"] for rank in exact)
    mine, theirs, other = whole_update(ours), whole_update(megatrons), whole_update(exact)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6 * float(value.abs().max()))
    rounded = [name for name in mine if ".linear_" in name and name.endswith("weight")]
    assert rounded and all(not torch.allclose(mine[name], other[name], rtol=1e-3) for name in rounded)
