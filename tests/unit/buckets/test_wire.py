"""Error feedback: what rounding loses of a row is paid back with the next one of the same objective."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.wire import Wire


def plan_of(grad: torch.Tensor) -> BucketPlan:
    return BucketPlan("bucket", grad, 0, (0, 1), ())


def sent_over(wire: Wire, grad: torch.Tensor, steps: int, objective: int = 0) -> torch.Tensor:
    """Mean of what arrives of the same gradient over some steps."""
    total = torch.zeros_like(grad)
    for _ in range(steps):
        plan = plan_of(grad.clone())
        total += wire.unpack(plan.rows, wire.pack(plan.rows, plan.name, objective)).flatten()
    return total / steps


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_feedback_takes_the_bias_away(name: str) -> None:
    grad = torch.randn(2 * 1000, generator=torch.Generator().manual_seed(1))
    plain = (sent_over(Wire(name, False), grad, 50) - grad).norm()
    fed = (sent_over(Wire(name, True), grad, 50) - grad).norm()
    assert 0 < fed < plain / 10


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_another_objective_pays_nothing_back(name: str) -> None:
    grad = torch.randn(2 * 256, generator=torch.Generator().manual_seed(2))
    wire, fresh = Wire(name, True), Wire(name, True)
    sent_over(wire, torch.randn(2 * 256, generator=torch.Generator().manual_seed(3)), 1, objective=0)
    assert torch.equal(sent_over(wire, grad, 1, objective=1), sent_over(fresh, grad, 1, objective=1))


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_every_objective_keeps_its_own_debt(name: str) -> None:
    """A place that computes another language in every step pays back as one that computes a single language."""
    grads = [torch.randn(2 * 300, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    turns, alone = Wire(name, True), [Wire(name, True) for _ in grads]
    for step in range(7):
        objective = (2 * step) % 3
        one, other = (sent_over(wire, grads[objective], 1, objective) for wire in (turns, alone[objective]))
        assert torch.equal(one, other), step


@pytest.mark.parametrize("name", ["bf16", "fp8"])
def test_a_bad_value_is_not_remembered(name: str) -> None:
    grad = torch.randn(2 * 256, generator=torch.Generator().manual_seed(4))
    bad = grad.clone()
    bad[3] = float("nan")
    wire = Wire(name, True)
    assert torch.isnan(sent_over(wire, bad, 1)[3])
    assert torch.isfinite(sent_over(wire, grad, 1)).all()
