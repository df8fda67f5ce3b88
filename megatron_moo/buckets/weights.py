"""From Gramians to weights: one batched solve for all blocks, and what the user asked for around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from megatron_moo.buckets.adaptive import AdaptiveBlocks
from megatron_moo.buckets.blocks import EXCLUDED
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.constants import constant
from megatron_moo.kernels import solve_blocks
from megatron_moo.moo.method import Method, StatefulMethod


class WeightSolver:
    """Weights ``[B, K]`` of every block.

    Args:
        config: method, rescaling, strength, kind of block.
        method: Gramians ``[B, K, K]`` to weights ``[B, K]`` (``megatron_moo.moo``).
        preference: ``[K]``, sums to 1, or None for uniform.

    Attributes:
        auto: how modules are grouped, with ``--moo-block auto``.
        changed: whether the last step changed the groups.
        lasting: ``[B, K]``, the last solve's weights for steps without a solve (``--moo-every``). A row that was not
            there then can be there in those (an expert that a language reaches now), so that its weight must not be
            the solve's 0: it is that of the plain mean, or the method's own where that does not ask for rows.
    """

    def __init__(
        self, config: MooConfig, method: Callable[..., torch.Tensor], preference: torch.Tensor | None
    ) -> None:
        self.config, self.method, self.preference = config, method, preference
        self.auto: AdaptiveBlocks | None = None
        self.changed = False
        self.lasting: torch.Tensor | None = None
        self._names: tuple[str, ...] = ()
        self._restored: Mapping[str, Any] | None = None

    def place(self, names: Sequence[str], objectives: int, device: torch.device) -> None:
        """Say which blocks the model has."""
        self._names = tuple(names)
        if self.preference is not None:
            self.preference = self.preference.to(device)
        if self.config.block != "auto":
            return
        self.auto = AdaptiveBlocks(names, objectives, self.config.auto_every, device)
        if self._restored is not None:
            self.auto.load_state_dict(self._restored)
            self._restored = None

    def __call__(
        self, gramians: torch.Tensor, counts: torch.Tensor, losses: torch.Tensor | None, step: int
    ) -> torch.Tensor:
        """Solve for a step.

        Args:
            gramians: ``[B, K, K]`` fp64, of rows that are means over tokens.
            counts: ``[K]`` tokens; losses: ``[K]`` or None.
            step: counted from 0.
        """
        self.changed = False
        if self.auto is None:
            weights, self.lasting = self._solve(gramians, self._names, counts, losses, step)
            return weights
        together = self.auto.together(gramians)
        weights, self.lasting = (
            self.auto.apart(found) for found in self._solve(together, self.auto.names, counts, losses, step)
        )
        self.changed = self.auto.follow(step, gramians)
        return weights

    def _solve(
        self,
        gramians: torch.Tensor,
        names: Sequence[str],
        counts: torch.Tensor,
        losses: torch.Tensor | None,
        step: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights of the step, and those that last."""
        inputs: dict[str, Any] = {
            "tokens": counts, "losses": losses, "preference": self.preference, "step": step, "block": list(names)
        }  # fmt: skip
        # Before the solve, which leaves its flags on the method.
        blind = self._without_rows(gramians, inputs) if self.config.every > 1 else None
        weights = solve_blocks(self.method, gramians, **inputs)
        k = gramians.shape[-1]
        u = torch.full_like(weights, 1.0 / k) if self.preference is None else self.preference
        u = u.to(weights).expand_as(weights)
        scale: torch.Tensor | float = 1.0
        if self.config.rescale == "mean":
            scale = _mean_over_norm(gramians, weights, u)[:, None]
        excluded = constant(tuple(name == EXCLUDED for name in names), weights.device, torch.bool)[:, None]

        def finished(weights: torch.Tensor) -> torch.Tensor:
            strength = self.config.strength_at(step)
            weights = weights * scale
            weights = weights if strength == 1.0 else u + strength * (weights - u)
            return torch.where(excluded, u, weights)

        final = finished(weights)
        if self.config.every == 1:
            return final, final
        present = gramians.diagonal(dim1=-2, dim2=-1) >= torch.finfo(torch.float64).tiny
        return final, torch.where(present, final, u if blind is None else finished(blind))

    def _without_rows(self, gramians: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor | None:
        """Weights ``[B, K]`` of a method that asks for no rows (mean, token, sum, fixed, random), else None."""
        method = self.method
        if not isinstance(method, Method) or isinstance(method, StatefulMethod) or method.spec.gramian:
            return None
        if method.options.get("normalize", "none") != "none":
            return None
        rows = torch.eye(gramians.shape[-1], dtype=gramians.dtype, device=gramians.device)
        return method(rows.expand_as(gramians), **inputs)

    def state_dict(self) -> dict[str, Any]:
        """What the next step reads, with the same keys on every rank."""
        state: dict[str, Any] = {"method": self.method.state_dict()}  # type: ignore[attr-defined]
        if self.auto is not None:
            state["auto"] = self.auto.state_dict()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`; groups are placed when the blocks are known."""
        self.method.load_state_dict(state["method"])  # type: ignore[attr-defined]
        if self.auto is not None and "auto" in state:
            self.auto.load_state_dict(state["auto"])
        else:
            self._restored = state.get("auto")


def _mean_over_norm(gramians: torch.Tensor, weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Norm of the mean gradient over that of the update, per block."""
    mean = torch.einsum("bi,bij,bj->b", u, gramians, u)
    norm = torch.einsum("bi,bij,bj->b", weights, gramians, weights)
    return torch.where(norm > 0, (mean / norm.clamp(min=1e-300)).clamp(min=0).sqrt(), 1.0)
