"""FAMO and CoBa, which look at losses."""

from __future__ import annotations

import pytest
import torch

from megatron_moo.moo import make_method

EYE = torch.eye(3, dtype=torch.float64)[None]


def weights(method: object, *losses: list[float]) -> torch.Tensor:
    for row in losses:
        w = method(EYE, losses=torch.tensor(row, dtype=torch.float64))  # type: ignore[operator]
    return w[0]


def test_famo_is_the_gradient_of_log_losses() -> None:
    w = weights(make_method("famo"), [1.0, 2.0, 4.0])
    expected = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    assert torch.allclose(w, expected / expected.sum())


def test_famo_by_autograd() -> None:
    """One step of the paper's algorithm with torch differentiating the softmax."""
    lr, decay = 0.3, 0.01
    method = make_method("famo", lr=lr, decay=decay)
    xi = torch.tensor([0.0, 0.0, 0.0], dtype=torch.float64)
    history = torch.tensor([[3.0, 2.0, 1.0], [2.5, 1.9, 1.2], [2.0, 1.0, 1.1]], dtype=torch.float64)
    for t, now in enumerate(history):
        if t:
            free = xi.clone().requires_grad_()
            (free.softmax(0) @ (history[t - 1].log() - now.log())).backward()
            xi = xi - lr * (free.grad + decay * xi)
        z = xi.softmax(0) / now
        assert torch.allclose(weights(method, now.tolist()), z / z.sum())


def test_famo_weighs_up_who_falls_behind() -> None:
    w = weights(make_method("famo", lr=1.0), *([2.0 - 0.1 * t, 2.0 - 0.1 * t, 2.0] for t in range(8)))
    ratio = w * torch.tensor([1.3, 1.3, 2.0]).double()  # w ~ z / loss
    assert ratio[2] > 1.05 * ratio[0]


def test_coba_starts_even_and_weighs_up_who_converges_slowly() -> None:
    method = make_method("coba")
    assert torch.allclose(weights(method, [3.0, 2.0, 1.0]), torch.full((3,), 1 / 3).double())
    w = weights(method, *([3.0 * 0.8**t, 2.0 * 0.9**t, 1.0 * 0.99**t] for t in range(1, 6)))
    assert w.sum().item() == pytest.approx(1) and w[2] > w[1] > w[0]


def test_coba_by_hand() -> None:
    """The formulas of the paper, in plain numbers."""
    losses = [[3.0, 2.0, 1.0], [2.7, 1.9, 1.0], [2.3, 1.85, 0.98], [2.1, 1.7, 0.99]]
    method = make_method("coba", window=3, tau=2.0, horizon=10)
    w = weights(method, *losses)
    ratio = torch.tensor(losses).double() / torch.tensor(losses[0]).double()
    slopes = []
    for t in range(len(losses)):
        window = ratio[max(0, t - 2) : t + 1]
        x = torch.arange(len(window)).double()
        x = x - x.mean()
        slopes.append((x @ window) / x.square().sum() if t else torch.zeros(3).double())
    a = torch.stack(slopes)
    rcs = (3 * a[-1] / a[-1].abs().sum()).softmax(0)
    acs = (-3 * a[-1] / a[-3:].abs().sum(0)).softmax(0)
    worst, t = a.max(1).values, torch.arange(1, 5).double()
    df = min(1.0, (4 * (-2.0 * t * worst / worst.sum()).softmax(0)[-1]).item())
    assert torch.allclose(w, df * rcs + (1 - df) * acs)


def test_losses_that_cannot_be_used() -> None:
    for name in ("famo", "coba"):
        w = weights(make_method(name), [1.0, 2.0, 3.0], [float("nan"), 1.9, 2.8], [float("inf"), 1.8, 2.7])
        assert w.isfinite().all(), name
        if name == "famo":
            assert w[0] == 0


def test_losses_per_block() -> None:
    losses = torch.tensor([[1.0, 2.0, 4.0], [4.0, 2.0, 1.0]], dtype=torch.float64)
    w = make_method("famo")(EYE.expand(2, 3, 3), losses=losses)
    assert torch.allclose(w[0], w[1].flip(0))
