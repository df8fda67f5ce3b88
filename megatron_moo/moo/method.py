"""The interface of every method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .options import Spec, checked_options
from .problem import Problem, Vector, build_problem
from .state import BlockState


class Method(ABC):
    """Weights from Gramians, for many blocks at once: ``[..., K, K] -> [..., K]``.

    Args:
        options: those of ``spec`` and the common ones (``normalize``).

    Raises:
        ValueError: for an unknown option or a value out of range, naming it.

    Attributes:
        flags: bool tensors of the last call, shaped like the leading dimensions: ``nonfinite`` and
            ``absent`` with a last dimension K (rows that were dropped), ``all_bad`` (no row left: the
            weights are 0), and what the method adds (``capped``, ``undefined``: a 0/0 that got its named
            value).
    """

    spec: ClassVar[Spec]

    def __init__(self, **options: Any) -> None:
        self.options = checked_options(self.spec, options)
        self.flags: dict[str, Tensor] = {}

    @property
    def needs(self) -> tuple[str, ...]:
        """Keyword arguments that a call cannot do without."""
        return self.spec.needs

    @torch.no_grad()
    def __call__(
        self,
        gramian: Tensor,
        *,
        tokens: Vector = None,
        losses: Vector = None,
        cross: Tensor | None = None,
        preference: Vector = None,
        step: int | None = None,
        block: Sequence[str] | None = None,
        order: Tensor | None = None,
    ) -> Tensor:
        """Weights ``[..., K]`` of ``d = sum_k w_k g_k``; fp64 when the Gramian is fp64, else fp32.

        Args:
            gramian: ``J J^T`` per block, ``[..., K, K]``, any float dtype.
            tokens: tokens per objective, ``[K]`` or ``[..., K]``. losses: likewise.
            cross: ``J_1 J_2^T`` of two independent batches, ``[..., K, K]``.
            preference: ``[K]`` or ``[..., K]``, takes the place of u = 1/K; need not sum to 1.
            step: the training step, for random methods (default 0). block: one name per block (default:
                position).
            order: ``[..., K, K-1]``, for row i the order in which the others are projected out (pcgrad,
                gradvac).

        Raises:
            ValueError: for a missing input or a shape that does not fit.
        """
        given = {"tokens": tokens, "losses": losses, "cross": cross, "order": order}
        for name in self.needs:
            if given[name] is None:
                raise ValueError(f"{self.spec.name} needs {name}=")
        problem = build_problem(
            gramian, self.options["normalize"], tokens, losses, cross, preference, order, step, block
        )
        weights = torch.where(problem.present, self.solve(problem), 0.0)
        if self.options["normalize"] != "none":
            weights = self._of_the_rows_given(weights, gramian, problem)
        lead = gramian.shape[:-2]
        self.flags = {
            name: flag.reshape((*lead, *flag.shape[1:])).clone() for name, flag in problem.flags.items()
        }
        out = torch.float64 if gramian.dtype == torch.float64 else torch.float32
        return weights.reshape(*lead, gramian.shape[-1]).to(out)

    def _of_the_rows_given(self, weights: Tensor, gramian: Tensor, problem: Problem) -> Tensor:
        """Weights of rows brought to one norm, as weights of the rows that were given."""
        k = gramian.shape[-1]
        norms = gramian.detach().reshape(-1, k, k).diagonal(dim1=-2, dim2=-1).to(torch.float64).sqrt()
        return weights * problem.scale.unsqueeze(-1) / torch.where(problem.present, norms, 1.0)

    @abstractmethod
    def solve(self, problem: Problem) -> Tensor:
        """Weights ``[B, K]`` in fp64; those of absent rows do not matter."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold: the same keys on every rank, empty for methods without state."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of :meth:`state_dict`.

        Raises:
            ValueError: for the state of another method.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(
                f"{self.spec.name}: state has keys {sorted(state)}, not {sorted(self.state_dict())}"
            )


class StatefulMethod(Method):
    """A method that remembers something per block, in ``state``."""

    state: BlockState

    def state_dict(self) -> dict[str, Any]:
        return self.state.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.state.load_state_dict(state)
