"""CoBa: convergence balancer, weights from the slopes of the losses.

With ``r_k(t) = loss_k(t) / loss_k(0)`` and ``a_k(t)`` the least-squares slope of r_k over the last
``window`` calls: ``RCS = softmax_k(K a_k / sum_j |a_j|)`` (who converges slower than the others gets more),
``ACS = softmax_k(-N a_k / sum_{window} |a_k|)`` (who converges slower than itself before gets less), and
``w = DF RCS + (1 - DF) ACS`` with ``DF = min(1, t softmax_t(-tau t a_max(t) / sum_i a_max(i)))``, which
falls when the worst slope turns up. Losses ``[K]`` or ``[B, K]`` -> ``[B, K]``.
Gong et al., "CoBa: convergence balancer for multitask finetuning of large language models", arXiv 2410.06741.

A baseline: the Gramian only tells which rows are there. The paper reads validation losses; here they are
what the caller gives. The sums of DF reach back ``horizon`` calls, so that the state does not grow. Before
two calls w = u.
State per block: first loss, the windows of ratios and slopes, the history of a_max, the number of calls.
Degenerate: absent rows get weight 0, the others share by the same formulas; a loss that is not positive and
finite repeats its last ratio.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from .famo import _softmax as softmax_over
from .method import StatefulMethod
from .options import Option, Spec
from .problem import Problem
from .state import BlockState


class CoBa(StatefulMethod):
    """Convergence balancing."""

    spec: ClassVar[Spec] = Spec(
        "coba",
        "Gong et al. 2024",
        "w = DF RCS + (1 - DF) ACS of the slopes of the losses",
        {
            "window": Option(5, "calls in a slope", low=2, high=1000),
            "tau": Option(5.0, "temperature of the divergence factor", low=0, open_low=True),
            "horizon": Option(64, "calls that the divergence factor looks back", low=2, high=10000),
        },
        needs=("losses",),
        takes=("block",),
        preference=True,
        state=True,
        gramian=False,
    )

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.state = BlockState("first", "ratios", "slopes", "worst", "calls")

    def solve(self, problem: Problem) -> Tensor:
        assert problem.losses is not None
        b, k = problem.p.shape
        window, horizon = self.options["window"], self.options["horizon"]
        new = problem.p.new_zeros
        old = self.state.read(
            problem,
            first=new(b, k),
            ratios=new(b, window, k),
            slopes=new(b, window, k),
            worst=new(b, horizon),
            calls=new(b, 1),
        )
        usable = problem.present & problem.losses.isfinite() & (problem.losses > 0)
        first = torch.where((old["first"] == 0) & usable, problem.losses, old["first"])
        last = torch.where(old["calls"] > 0, old["ratios"][:, -1], 1.0)
        ratio = torch.where(usable, problem.losses / torch.where(first > 0, first, 1.0), last)
        calls = old["calls"] + 1.0
        ratios = torch.cat([old["ratios"][:, 1:], ratio.unsqueeze(1)], 1)
        slope = _slopes(ratios, calls.clamp(max=window))
        slopes = torch.cat([old["slopes"][:, 1:], slope.unsqueeze(1)], 1)
        top = torch.where(problem.present, slope, -torch.inf).amax(-1, keepdim=True)
        worst = torch.cat([old["worst"][:, 1:], torch.where(top.isfinite(), top, 0.0)], 1)
        self.state.write(problem, first=first, ratios=ratios, slopes=slopes, worst=worst, calls=calls)
        return self._weights(problem, slope, slopes, worst, calls)

    def _weights(
        self, problem: Problem, slope: Tensor, slopes: Tensor, worst: Tensor, calls: Tensor
    ) -> Tensor:
        present = problem.present
        size = torch.where(present, slope.abs(), 0.0).sum(-1, keepdim=True)
        rcs = softmax_over(problem.count.unsqueeze(-1) * slope / torch.where(size > 0, size, 1.0), present)
        past = slopes.abs().sum(1)
        acs = softmax_over(-slopes.shape[1] * slope / torch.where(past > 0, past, 1.0), present)
        df = self._divergence(worst, calls)
        return torch.where(calls > 1, df * rcs + (1.0 - df) * acs, problem.u)

    def _divergence(self, worst: Tensor, calls: Tensor) -> Tensor:
        """DF ``[B, 1]`` from the history of the worst slopes, newest last."""
        horizon = worst.shape[-1]
        age = torch.arange(horizon, 0, -1, dtype=worst.dtype, device=worst.device)
        known = age <= calls
        t = (calls.clamp(max=horizon) - age + 1.0).clamp(min=1.0)
        total = worst.sum(-1, keepdim=True)
        exponent = -self.options["tau"] * t * worst / torch.where(total == 0, 1.0, total)
        share = softmax_over(exponent, known)[:, -1:]
        return (calls.clamp(max=horizon) * share).clamp(max=1.0)


def _slopes(ratios: Tensor, count: Tensor) -> Tensor:
    """Least-squares slope over the last ``count [B, 1]`` of ``ratios [B, window, K]``: ``[B, K]``, 0 for one
    point."""
    window = ratios.shape[1]
    age = torch.arange(window, 0, -1, dtype=ratios.dtype, device=ratios.device)
    used = (age <= count).to(ratios.dtype)
    time = -age * used
    time = (time - time.sum(-1, keepdim=True) / count) * used
    spread = time.square().sum(-1, keepdim=True)
    return (time.unsqueeze(-1) * ratios).sum(1) / torch.where(spread > 0, spread, 1.0)
