"""What a cell tells besides its loss: conflict beside its noise floor, and what Adam's step does to each language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Measured:
    """Sums over a run.

    Args:
        languages: whether groups are languages (else pseudo-languages).
    """

    def __init__(self, languages: bool) -> None:
        self.languages = languages
        self._halves: list[dict[str, float]] = []
        self._applied: list[torch.Tensor] = []
        self._combined: list[torch.Tensor] = []

    def halves(self, gramians: torch.Tensor) -> None:
        """Note the Gramians ``[B, 2K, 2K]`` of both halves of every group's batch (2k and 2k + 1 are group k's).

        Halves of one group differ by noise alone, halves of two groups by noise and by group: both are compared at
        the same batch size.
        """
        norms = gramians.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).sqrt()
        blocks = gramians / (norms[:, :, None] * norms[:, None, :])
        total = gramians.sum(0)
        norm = total.diagonal().clamp(min=1e-300).sqrt()
        whole = total / (norm[:, None] * norm[None, :])
        group = torch.arange(len(norm)) // 2
        upper = torch.ones_like(whole, dtype=torch.bool).triu(1)
        same, other = (group[:, None] == group[None, :]) & upper, (group[:, None] != group[None, :]) & upper
        self._halves.append(
            {
                "cosine": float(whole[other].mean()),
                "cosine_same": float(whole[same].mean()),
                "conflict": float((blocks[:, other] < 0).double().mean()),
                "conflict_same": float((blocks[:, same] < 0).double().mean()),
            }
        )

    def applied(
        self, rows: Sequence[torch.Tensor], changes: Sequence[torch.Tensor], weights: torch.Tensor
    ) -> None:
        """Note what a step does to first order: ``<g_k, change of the parameters>`` and ``<g_k, d>``."""
        first = rows[0].new_zeros(rows[0].shape[0])
        direct = first.clone()
        for piece, change, w in zip(rows, changes, weights, strict=True):
            flat = piece.flatten(1)
            first += flat @ change.flatten()
            direct += flat @ (flat.T @ w.to(flat.dtype))
        self._applied.append(first)
        self._combined.append(direct)

    def summary(self) -> dict[str, Any]:
        """Means over the run: ``conflict`` (four numbers) and ``descent``.

        ``descent`` holds, of the step that Adam applied, the predicted fall of the loss per language (``each``), its
        mean, the mean of the worst language's, the share of (step, language) that rise (``rising``), and the same
        share for the method's direction d before Adam (``rising_d``).
        """
        found: dict[str, Any] = {}
        if self._halves:
            found["conflict"] = {
                key: sum(item[key] for item in self._halves) / len(self._halves) for key in self._halves[0]
            }
        if self._applied:
            falls, direct = -torch.stack(self._applied).double(), torch.stack(self._combined).double()
            found["descent"] = {
                "each": falls.mean(0).tolist(),
                "mean": float(falls.mean()),
                "worst": float(falls.min(1).values.mean()),
                "rising": float((falls < 0).double().mean()),
                "rising_d": float((direct < 0).double().mean()),
                "languages": self.languages,
            }
        return found
