"""State per block: kept by name, so that it follows a block to another layout or another order of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .problem import Problem, block_names


class BlockState:
    """Named tensors ``[B, ...]``, one row per block.

    Args:
        keys: what is remembered. ``state_dict`` has these keys and ``blocks`` on every rank, from the start.
    """

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.blocks: tuple[str, ...] = ()
        self.values: dict[str, Tensor] = {}

    def read(self, problem: Problem, **initial: Tensor) -> dict[str, Tensor]:
        """The state of the blocks of ``problem``; blocks not seen before start at ``initial``, ``[B, ...]``
        per key.

        Raises:
            ValueError: when the number of objectives changed.
        """
        names = block_names(problem)
        if not self.blocks:
            return dict(initial)
        values = {key: self.values[key].to(initial[key].device) for key in self.keys}
        for key in self.keys:
            if values[key].shape[1:] != initial[key].shape[1:]:
                raise ValueError(
                    f"state {key} has shape {tuple(values[key].shape[1:])} per block, this call needs "
                    f"{tuple(initial[key].shape[1:])}: the number of objectives changed"
                )
        if names == self.blocks:
            return values
        place = {name: i for i, name in enumerate(self.blocks)}
        device = problem.p.device
        rows = torch.tensor([place.get(name, 0) for name in names], device=device)
        known = torch.tensor([name in place for name in names], device=device)
        return {
            key: torch.where(known.view(-1, *(1,) * (value.dim() - 1)), value[rows], initial[key])
            for key, value in values.items()
        }

    def write(self, problem: Problem, **values: Tensor) -> None:
        """Remember; blocks that are not in ``problem`` keep what they had."""
        names = block_names(problem)
        if self.blocks in ((), names):
            self.blocks, self.values = names, {key: values[key] for key in self.keys}
            return
        new = set(names)
        rest = [i for i, name in enumerate(self.blocks) if name not in new]
        kept = torch.tensor(rest, dtype=torch.int64, device=problem.p.device)
        self.values = {
            key: torch.cat([values[key], self.values[key].to(values[key].device)[kept]]) for key in self.keys
        }
        self.blocks = (*names, *(self.blocks[i] for i in rest))

    def state_dict(self) -> dict[str, Any]:
        """``{"blocks": [names], key: tensor or None}``."""
        copies = {key: self.values[key].clone() if self.blocks else None for key in self.keys}
        return {"blocks": list(self.blocks), **copies}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: for keys of another method, or tensors that do not have one row per block.
        """
        if set(state) != {"blocks", *self.keys}:
            raise ValueError(f"state has keys {sorted(state)}, not {sorted(('blocks', *self.keys))}")
        self.blocks = tuple(state["blocks"])
        self.values = {}
        for key in self.keys if self.blocks else ():
            if len(state[key]) != len(self.blocks):
                raise ValueError(f"state {key} has {len(state[key])} rows for {len(self.blocks)} blocks")
            self.values[key] = torch.as_tensor(state[key]).clone()
