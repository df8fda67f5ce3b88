"""A language whose loss and gradient are not finite for some steps: no method remembers it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_moo.moo import METHODS, make_method

BAD, STEPS = 2, (2, 3)
TRAINED = tuple(
    f"{name}:cagrad" if name == "ema" else name
    for name, spec in METHODS.items()
    if "cross" not in (*spec.needs, *spec.takes)
)


def numbers(state: Any) -> list[torch.Tensor]:
    if isinstance(state, dict):
        return [number for value in state.values() for number in numbers(value)]
    if isinstance(state, list | tuple):
        return [number for value in state for number in numbers(value)]
    return [torch.as_tensor(state).double()] if isinstance(state, torch.Tensor | float) else []


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_it_is_forgotten(name: str, value: float) -> None:
    generator = torch.Generator().manual_seed(3)
    method = make_method(name)
    for step in range(6):
        rows = torch.randn(2, 4, 30, dtype=torch.float64, generator=generator) + 0.3
        losses = torch.tensor([3.0, 2.0, 2.5, 4.0], dtype=torch.float64) / (1 + 0.1 * step)
        tokens = torch.full((4,), 10.0, dtype=torch.float64)
        if step in STEPS:  # what MooStep makes of a bad language
            rows[:, BAD], losses[BAD], tokens[BAD] = 0.0, value, 0.0
        weights = method(rows @ rows.mT, tokens=tokens, losses=losses, step=step, block=["a", "b"])
        assert torch.isfinite(weights).all()
        assert all(torch.isfinite(number).all() for number in numbers(method.state_dict()))
    assert float(weights[:, BAD].abs().max()) > 0, "and is back"
