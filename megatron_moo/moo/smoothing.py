"""What the wrappers share: another method inside, and a moving average of its weights per block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .method import Method
from .options import COMMON, Option
from .problem import Problem
from .state import BlockState

DECAY = Option(0.9, "share of the past in the average", low=0, high=1, open_high=True)


class Wrapper(Method):
    """A method over another one, whose name is the option ``of``; further options go to the inner method.

    ``state_dict`` holds ``inner`` (its state), ``blocks``, ``average`` and ``mass`` (what the past counts,
    per entry).
    """

    def __init__(self, **options: Any) -> None:
        own = {
            name: options.pop(name) for name in list(options) if name in self.spec.options or name in COMMON
        }
        super().__init__(**own)
        from .registry import make_method  # the registry holds the wrappers too

        self.inner = make_method(str(self.options["of"]), **options)
        self.options = {**self.inner.options, **self.options}
        self.state = BlockState("average", "mass")

    @property
    def needs(self) -> tuple[str, ...]:
        return self.inner.needs

    def averaged(self, problem: Problem, w: Tensor) -> tuple[Tensor, Tensor]:
        """Average started at 0 and its mass, ``[B, K]``, after ``w``; entries of absent rows stay as they
        are."""
        decay = self.options["decay"]
        zero = torch.zeros_like(w)
        old = self.state.read(problem, average=zero, mass=zero)
        average = torch.where(problem.present, decay * old["average"] + (1 - decay) * w, old["average"])
        mass = torch.where(problem.present, decay * old["mass"] + (1 - decay), old["mass"])
        return average, mass

    def state_dict(self) -> dict[str, Any]:
        return {"inner": self.inner.state_dict(), **self.state.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        rest = dict(state)
        if "inner" not in rest:
            raise ValueError(f"{self.spec.name}: state has no inner")
        self.inner.load_state_dict(rest.pop("inner"))
        self.state.load_state_dict(rest)
