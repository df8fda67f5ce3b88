"""``--moo-block auto``: blocks that start as layers and follow the conflict that is measured.

The Gramians are those of modules (attention, MLP, norms of every layer); what changes is which of them share a set of
weights. Cosines between objectives are averaged over the steps between two decisions. Batches are independent from step
to step, so sampling noise averages out, and the spread over steps gives the standard error: a pair of objectives is in
conflict in a block when its mean cosine is below zero by more than ``Z`` standard errors.

    split   a group in whose parts a pair is in conflict that is not in the group as a whole: into its layers, or, of
            one layer, into its modules. What the parts disagree about cannot be resolved by common weights.
    merge   neighbours without any pair in conflict, in themselves or their parts: nothing is to be resolved, and one
            larger block follows the whole model's descent more closely.

Decisions are made at the steps that ``every`` divides, from Gramians that all ranks share, so they are the same on
every rank; they are logged, and the state resumes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from megatron_moo.buckets.blocks import EXCLUDED

Z = 2.0
_LAYER = re.compile(r"^(.*?\blayers\.\d+)\.")


def layer_of(module: str) -> str:
    """The block of kind ``layer`` that a block of kind ``module`` belongs to."""
    if match := _LAYER.match(module):
        return match[1]
    return "head" if module == "final_norm" else module


class CosineStatistics:
    """Mean and standard error of cosines between objectives, per block, over steps.

    Args:
        blocks: B.
        objectives: K.
        device: where Gramians are.
    """

    def __init__(self, blocks: int, objectives: int, device: torch.device) -> None:
        self.sums = torch.zeros(3, blocks, objectives, objectives, dtype=torch.float64, device=device)

    def add(self, gramians: torch.Tensor) -> None:
        """Count a step's Gramians ``[B, K, K]``; pairs with a zero row are not counted."""
        s = gramians.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
        norms = s[..., :, None] * s[..., None, :]
        known = (norms > 0) & torch.isfinite(gramians)
        c = torch.where(known, gramians / norms.clamp(min=1e-300), 0.0)
        self.sums += torch.stack([known.double(), c, c * c])

    def in_conflict(self) -> torch.Tensor:
        """``[B, K, K]`` bool: the mean cosine is below zero by more than ``Z`` standard errors."""
        n, total, squares = self.sums
        mean = total / n.clamp(min=1)
        variance = (squares / n.clamp(min=1) - mean * mean).clamp(min=0) * n / (n - 1).clamp(min=1)
        return (n > 1) & (mean + Z * (variance / n.clamp(min=1)).sqrt() < 0)


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
        self._restart()

    def _restart(self) -> None:
        of = [0] * len(self.modules)
        for number, group in enumerate(self.groups):
            for index in group:
                of[index] = number
        self._of = torch.tensor(of, device=self._device)
        self._parts = CosineStatistics(len(self.modules), self._k, self._device)
        self._wholes = CosineStatistics(len(self.groups), self._k, self._device)

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
        """Count a step (from 0) and decide when it is time; returns whether the groups changed.

        Args:
            step: the step that was just solved.
            gramians: ``[B, K, K]`` of the modules.
        """
        self._parts.add(gramians)
        self._wholes.add(self.together(gramians))
        if (step + 1) % self.every:
            return False
        before = self.groups
        self.groups = self._merged(*self._split())
        self._restart()
        return self.groups != before

    def _split(self) -> tuple[list[tuple[int, ...]], list[bool]]:
        """The groups after splitting, and whether each is free of conflict."""
        parts, wholes = self._parts.in_conflict().cpu(), self._wholes.in_conflict().cpu()
        groups: list[tuple[int, ...]] = []
        free: list[bool] = []
        for group, whole in zip(self.groups, wholes, strict=True):
            local = parts[list(group)]
            pieces = [group]
            if len(group) > 1 and bool((local & ~whole).any()):
                layers: dict[str, list[int]] = {}
                for index in group:
                    layers.setdefault(layer_of(self.modules[index]), []).append(index)
                pieces = [tuple(part) for part in layers.values()]
                if len(pieces) == 1:
                    pieces = [(index,) for index in group]
            quiet = not bool(local.any()) and not bool(whole.any())
            groups += pieces
            free += [quiet] * len(pieces)
        return groups, free

    def _merged(self, groups: list[tuple[int, ...]], free: list[bool]) -> list[tuple[int, ...]]:
        merged: list[tuple[int, ...]] = []
        open_ = False
        for group, quiet in zip(groups, free, strict=True):
            quiet = quiet and self.modules[group[0]] != EXCLUDED
            if quiet and open_:
                merged[-1] = (*merged[-1], *group)
            else:
                merged.append(group)
            open_ = quiet
        return merged

    def state_dict(self) -> dict[str, Any]:
        """Groups by name and what was counted since the last decision."""
        return {
            "groups": [[self.modules[index] for index in group] for group in self.groups],
            "parts": self._parts.sums.cpu().clone(),
            "wholes": self._wholes.sums.cpu().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: for the groups of another model.
        """
        place = {name: index for index, name in enumerate(self.modules)}
        if sorted(name for group in state["groups"] for name in group) != sorted(self.modules):
            raise ValueError("the groups are those of another model")
        self.groups = [tuple(place[name] for name in group) for group in state["groups"]]
        self._restart()
        self._parts.sums.copy_(state["parts"])
        self._wholes.sums.copy_(state["wholes"])
