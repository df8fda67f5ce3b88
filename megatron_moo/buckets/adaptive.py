"""``--moo-block auto``: blocks that start as layers and follow the conflict that is measured.

The Gramians are those of modules (attention, MLP, norms of every layer); what changes is which of them share a set of
weights. Cosines between objectives are averaged over the steps between two decisions. Batches are independent from step
to step, so sampling noise averages out, and the spread over steps gives the standard error.

    split   a group in one of whose modules a pair of objectives is in conflict, and more so than in the group: into its
            layers, or, of one layer, into its modules. What the parts disagree about cannot be resolved by common
            weights. Two tests over the steps: the module's cosine is below zero, and the difference of the same step's
            cosines (module minus group) is below zero. "Significant in the one and not in the other" would be no test.
    merge   neighbours in whose modules every pair agrees (cosine above zero): nothing is to be resolved, and one larger
            block follows the whole model's descent more closely. No conflict found is not agreement, so that cosines
            around zero leave the groups as they are.

A split looks for one hit among many, so each of its tests is held to ``LEVEL`` / (pairs x modules tested) (Bonferroni);
a merge needs every pair and is wrong only where all of them are found, so each is held to ``LEVEL`` / groups
(intersection-union test; Berger, Technometrics 1982). Quantiles are Student's, for the steps are few. Noise alone then
changes something in at most 2 x ``LEVEL`` of the decisions.

Where a step has two batches of one language, their cosine (``cosine_same`` in the metrics) says how much of a row is
signal. It is no input here: noise draws cosines between languages towards zero by about that factor, which costs power
and moves no sign.

A decision comes with the first solved step in or after each ``every``-th, and not before min(``every``, ``ENOUGH``)
solved steps were counted since the last one (``--moo-every`` leaves most steps unsolved). It is made from Gramians that
all ranks share, so it is the same on every rank; it is logged, and the state resumes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from megatron_moo.buckets.blocks import EXCLUDED

LEVEL = 0.025
ENOUGH = 8
# Cosines that differ by less differ by rounding, which a spread of zero would call significant.
ROUNDING = 1e-6
_LAYER = re.compile(r"^(.*?\blayers\.\d+)\.")


def layer_of(module: str) -> str:
    """The block of kind ``layer`` that a block of kind ``module`` belongs to."""
    if match := _LAYER.match(module):
        return match[1]
    return "head" if module == "final_norm" else module


@lru_cache(maxsize=1024)
def student_quantile(dof: int, tail: float) -> float:
    """The value that Student's t with ``dof`` degrees of freedom exceeds with probability ``tail`` (below 0.5).

    By bisection of the finite series for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4). More than
    1000 degrees are taken for 1000, which is on the safe side by less than 1 % for any tail above 1e-9.
    """
    dof = min(dof, 1000)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        low, high = (angle, high) if _tail(angle, dof) > tail else (low, angle)
    return math.sqrt(dof) * math.tan((low + high) / 2)


def _tail(angle: float, dof: int) -> float:
    """P(t > sqrt(dof) tan(angle))."""
    sine, square = math.sin(angle), math.cos(angle) ** 2
    odd = dof % 2
    term, total = (math.cos(angle), 0.0) if odd else (1.0, 0.0)
    for power in range(odd, dof - 1, 2):
        total += term
        term *= square * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return (1 - inside) / 2


def cosines(gramians: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines ``[B, K, K]`` of Gramians, and where they are known: pairs with a zero row have none."""
    s = gramians.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    norms = s[..., :, None] * s[..., None, :]
    known = (norms > 0) & torch.isfinite(gramians)
    return torch.where(known, gramians / norms.clamp(min=1e-300), 0.0), known


class Moments:
    """Mean and spread over steps of a number per block and pair of objectives, and whether its mean is zero.

    Args:
        blocks: B.
        objectives: K.
        device: where Gramians are.

    Attributes:
        sums: ``[3, B, K, K]`` fp64: how often it was known, its sum, the sum of its squares.
    """

    def __init__(self, blocks: int, objectives: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, blocks, objectives, objectives, dtype=torch.float64, device=device)

    def add(self, values: torch.Tensor, known: torch.Tensor) -> None:
        """Count a step's ``values`` ``[B, K, K]`` where they are ``known``."""
        values = torch.where(known, values, 0.0)
        self.sums += torch.stack([known.double(), values, values * values])

    def above(self, tail: float) -> torch.Tensor:
        """``[B, K, K]`` bool on the CPU: the mean is above zero, at a one-sided level of ``tail``."""
        mean, bound = self._mean(tail)
        return mean > bound

    def below(self, tail: float) -> torch.Tensor:
        """``[B, K, K]`` bool on the CPU: the mean is below zero, at a one-sided level of ``tail``."""
        mean, bound = self._mean(tail)
        return mean < -bound

    def _mean(self, tail: float) -> tuple[torch.Tensor, torch.Tensor]:
        n, total, squares = self.sums.cpu()
        mean = total / n.clamp(min=1)
        variance = (squares / n.clamp(min=1) - mean * mean).clamp(min=0) / (n - 1).clamp(min=1)
        quantile = torch.full_like(n, math.inf)  # one step is no statistic
        for count in n.unique().tolist():
            if count > 1:
                quantile[n == count] = student_quantile(int(count) - 1, tail)
        return mean, torch.where(n > 1, quantile * variance.sqrt() + ROUNDING, math.inf)


class AdaptiveBlocks:
    """Which modules share a set of weights.

    Args:
        modules: names of the blocks of kind ``module``, in the order of the Gramians.
        objectives: K.
        every: steps between decisions.
        device: where Gramians are.

    Attributes:
        groups: indices of modules, neighbours together, in order.
    """

    def __init__(self, modules: Sequence[str], objectives: int, every: int, device: torch.device) -> None:
        self.modules, self.every = tuple(modules), every
        self._k, self._device = objectives, device
        layers: dict[str, list[int]] = {}
        for index, name in enumerate(modules):
            layers.setdefault(layer_of(name), []).append(index)
        self.groups = [tuple(group) for group in layers.values()]
        # Decisions that were due before the first step that is counted are not made up for.
        self._decided: int | None = None
        self._restart()

    def _restart(self) -> None:
        of = [0] * len(self.modules)
        for number, group in enumerate(self.groups):
            for index in group:
                of[index] = number
        self._of = torch.tensor(of, device=self._device)
        self._counted = 0
        self._parts = Moments(len(self.modules), self._k, self._device)
        self._differences = Moments(len(self.modules), self._k, self._device)

    @property
    def names(self) -> list[str]:
        """A name for each group: its module, its layer, or the first and the last module."""
        return [self._name(group) for group in self.groups]

    def _name(self, group: tuple[int, ...]) -> str:
        first, last = self.modules[group[0]], self.modules[group[-1]]
        if len(group) == 1:
            return first
        layer = layer_of(first)
        whole = [index for index, name in enumerate(self.modules) if layer_of(name) == layer]
        return layer if list(group) == whole else f"{first}..{last}"

    def together(self, gramians: torch.Tensor) -> torch.Tensor:
        """Gramians ``[G, K, K]`` of the groups, from those of the modules: they add."""
        out = gramians.new_zeros(len(self.groups), *gramians.shape[1:])
        return out.index_add_(0, self._of, gramians)

    def apart(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights ``[B, K]`` of the modules, from those of the groups ``[G, K]``."""
        return weights[self._of]

    def follow(self, step: int, gramians: torch.Tensor) -> bool:
        """Count a solved step (from 0) and decide when it is time; returns whether the groups changed.

        Args:
            step: the step that was just solved.
            gramians: ``[B, K, K]`` of the modules.
        """
        parts, known = cosines(gramians)
        wholes, whole_known = cosines(self.together(gramians))
        self._parts.add(parts, known)
        self._differences.add(parts - wholes[self._of], known & whole_known[self._of])
        self._counted += 1
        if self._decided is None:
            self._decided = step // self.every
        due = (step + 1) // self.every
        if due <= self._decided or self._counted < min(self.every, ENOUGH):
            return False
        self._decided = due
        before = self.groups
        self.groups = self._merged(*self._split())
        self._restart()
        return self.groups != before

    def _split(self) -> tuple[list[tuple[int, ...]], list[bool]]:
        """The groups after splitting, and whether every pair agrees in each."""
        tested = sum(len(group) for group in self.groups if len(group) > 1) * (self._k * (self._k - 1) // 2)
        tail = LEVEL / max(1, tested)
        conflict = (self._parts.below(tail) & self._differences.below(tail)).flatten(1).any(1)
        agreement = self._parts.above(LEVEL / len(self.groups)).flatten(1).all(1)
        groups: list[tuple[int, ...]] = []
        agree: list[bool] = []
        for group in self.groups:
            pieces = [group]
            split = len(group) > 1 and bool(conflict[list(group)].any())
            if split:
                layers: dict[str, list[int]] = {}
                for index in group:
                    layers.setdefault(layer_of(self.modules[index]), []).append(index)
                pieces = [tuple(part) for part in layers.values()]
                if len(pieces) == 1:
                    pieces = [(index,) for index in group]
            groups += pieces
            agree += [not split and bool(agreement[list(group)].all())] * len(pieces)
        return groups, agree

    def _merged(self, groups: list[tuple[int, ...]], agree: list[bool]) -> list[tuple[int, ...]]:
        merged: list[tuple[int, ...]] = []
        open_ = False
        for group, quiet in zip(groups, agree, strict=True):
            quiet = quiet and self.modules[group[0]] != EXCLUDED
            if quiet and open_:
                merged[-1] = (*merged[-1], *group)
            else:
                merged.append(group)
            open_ = quiet
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Groups by name, what was counted since the last decision, and how many decisions were due by then."""
        return {
            "groups": [[self.modules[index] for index in group] for group in self.groups],
            "parts": self._parts.sums.cpu().clone(),
            "differences": self._differences.sums.cpu().clone(),
            "counted": self._counted,
            "decided": self._decided,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`. A state of an earlier version keeps its groups and counts anew.

        Raises:
            ValueError: for the groups of another model, or another number of objectives.
        """
        place = {name: index for index, name in enumerate(self.modules)}
        if sorted(name for group in state["groups"] for name in group) != sorted(self.modules):
            raise ValueError("the groups of --moo-block auto are those of another model")
        if state["parts"].shape != self._parts.sums.shape:
            raise ValueError(
                f"--moo-block auto counted {state['parts'].shape[-1]} objectives, this run has {self._k}"
            )
        self.groups = [tuple(place[name] for name in group) for group in state["groups"]]
        self._decided = state.get("decided")
        self._restart()
        if "differences" not in state:
            return
        self._counted = state["counted"]
        self._parts.sums.copy_(state["parts"])
        self._differences.sums.copy_(state["differences"])
