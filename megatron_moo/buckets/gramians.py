"""Gramians of a step: products of rows as they arrive, added up by block and objective."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from megatron_moo.buckets.constants import constant

Place = tuple[int, int]  # (slot, lane)


def twins(assignment: list[list[int]]) -> list[tuple[int, Place, Place]]:
    """Objectives that two positions compute, with the first two positions (slot, lane) of each."""
    places: dict[int, list[Place]] = {}
    for slot, objectives in enumerate(assignment):
        for lane, objective in enumerate(objectives):
            places.setdefault(objective, []).append((slot, lane))
    return [(objective, at[0], at[1]) for objective, at in places.items() if len(at) > 1]


class GramianSum:
    """This rank's part of the Gramians of one step.

    Attributes:
        gramians: ``[B, K, K]`` fp64, of sums of gradients.
        same: ``[K, 3]`` fp64; for an objective that two positions compute the inner product of the two whole-model
            rows and their squared norms.

    Args:
        assignment: ``[slots][lanes]`` objective indices.
        blocks: B.
        objectives: K.
        device: where the rows are.
    """

    def __init__(
        self, assignment: list[list[int]], blocks: int, objectives: int, device: torch.device
    ) -> None:
        self.gramians = torch.zeros(blocks, objectives, objectives, dtype=torch.float64, device=device)
        self.same = torch.zeros(objectives, 3, dtype=torch.float64, device=device)
        self._assignment, self._twins = assignment, twins(assignment)
        self._noted: dict[tuple[int, ...], list[tuple[int, torch.Tensor]]] = {}

    def note(self, lanes: tuple[int, ...], block: int, raw: torch.Tensor) -> None:
        """Note the products ``[P, P]`` of the rows of a segment; :meth:`fold` adds them to its block.

        Args:
            lanes: lane of every member of the bucket; the rows are theirs, slot by slot.
            block: index of the segment's block.
            raw: fp64.
        """
        self._noted.setdefault(lanes, []).append((block, raw))

    def fold(self, slots: Sequence[int], pairs: Collection[Place]) -> None:
        """Add products of rows to those of their objectives: rows of one objective are summands of its row.

        Args:
            slots: whose rows the noted products are of, in this order.
            pairs: the pairs of slots (first <= second) that count; others have been or will be counted elsewhere.
        """
        for lanes, noted in self._noted.items():
            raw = torch.stack([products for _, products in noted])
            block = constant(tuple(block for block, _ in noted), raw.device)
            positions = [(slot, lane) for slot in slots for lane in lanes]
            counted = tuple(
                tuple((min(a, b), max(a, b)) in pairs for b, _ in positions) for a, _ in positions
            )
            if not all(map(all, counted)):
                raw = torch.where(constant(counted, raw.device, torch.bool), raw, 0.0)
            index = constant(tuple(self._assignment[slot][lane] for slot, lane in positions), raw.device)
            places = (block[:, None, None], index[None, :, None], index[None, None, :])
            self.gramians.index_put_(places, raw, accumulate=True)
            for objective, first, second in self._twins:
                a, b = (
                    constant(tuple(row for row, at in enumerate(positions) if at == place), raw.device)
                    for place in (first, second)
                )
                sums = (raw[:, a][:, :, b].sum(), raw[:, a][:, :, a].sum(), raw[:, b][:, :, b].sum())
                self.same[objective] += torch.stack(sums)
        self._noted = {}
