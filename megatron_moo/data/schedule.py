"""LaneSchedule: which objective each of the L = slots x lanes positions of a step computes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from megatron_moo.data.permutation import shuffled, stable_hash
from megatron_moo.data.quota import draw, normalise, sequence_key
from megatron_moo.errors import MooError

PRESENCES = ("present", "law")


class LaneSchedule:
    """Objectives of the L positions of each step; position = slot * lanes + lane.

    A pure function of (seed, shares, step since the law began, L): 4 slots on one lane, 2 x 2 and 1 x 4
    agree.

    * ``present``: while K <= L every objective is in every step and the other positions go to the objectives
    that the
      law gives more than one; with K > L the objectives rotate: with uniform shares no objective comes twice
      in a step
      and counts never differ by more than one, otherwise they follow the shares.
    * ``law``: every position is drawn, so that long-run shares are the law's; a rare objective sits out some
    steps.

    Args:
        objectives: K.
        lanes: D.
        slots: S.
        seed: of the order of draws.
        presence: ``present`` or ``law``.
        shares: K shares of the positions (not of the tokens: see ``laws.position_shares``); None: uniform.
        group: so many positions next to each other compute one objective: the law deals to ``places`` of them. It
            must divide the lanes.
    """

    def __init__(
        self,
        objectives: int,
        lanes: int,
        slots: int = 1,
        seed: int = 0,
        presence: str = "present",
        shares: Sequence[float] | None = None,
        group: int = 1,
    ) -> None:
        if presence not in PRESENCES:
            raise MooError(f"unknown presence {presence!r}", todo=f"choose one of {', '.join(PRESENCES)}")
        if min(objectives, lanes, slots) < 1:
            raise MooError(
                f"a schedule needs at least 1 objective, lane and slot, not {objectives}, {lanes}, {slots}"
            )
        if group < 1 or lanes % group:
            raise MooError(f"groups of {group} do not divide {lanes} lanes", "--moo-lane-group")
        self.objectives, self.lanes, self.slots, self.group = objectives, lanes, slots, group
        self.seed, self.presence = seed, presence
        if shares is not None and len(shares) != objectives:
            raise MooError(f"{len(shares)} shares for {objectives} objectives")
        try:
            self.shares = normalise(shares if shares is not None else [1.0] * objectives)
        except ValueError as error:
            raise MooError(str(error), todo="check the weights in the manifest") from error
        self._uniform = max(self.shares) - min(self.shares) < 1e-12
        self._base = presence == "present" and objectives <= self.places
        self._extra_shares = self._water_fill() if self._base and not self._uniform else self.shares
        self._key = sequence_key(seed, "objective")

    @property
    def positions(self) -> int:
        """L = slots * lanes."""
        return self.lanes * self.slots

    @property
    def places(self) -> int:
        """What the law deals to: L / group."""
        return self.positions // self.group

    def assignment(self, step: int) -> list[list[int]]:
        """Objective index [slots][lanes] of a step (counted from 0, since the law began)."""
        flat = self.flat(step)
        return [flat[slot * self.lanes : (slot + 1) * self.lanes] for slot in range(self.slots)]

    def flat(self, step: int) -> list[int]:
        """Objective index of the L positions of a step, equal ones side by side (``buckets/hierarchy.py``)."""
        dealt = self._drawn(step, self.places - self.objectives if self._base else self.places)
        if self._base:
            dealt = [*range(self.objectives), *dealt]
        return [objective for objective in sorted(dealt) for _ in range(self.group)]

    def expected_shares(self) -> tuple[float, ...]:
        """Long-run share of the positions of each objective under this presence (the law's own under
        ``law``)."""
        if not self._base:
            return self.shares
        extra = self.places - self.objectives
        return tuple((1 + extra * share) / self.places for share in self._extra_shares)

    def fingerprint(self) -> str:
        """What decides the assignment; a resumed run whose fingerprint differs begins a new law."""
        parts = (
            self.objectives,
            self.positions,
            self.seed,
            self.presence,
            *([f"groups of {self.group}"] if self.group > 1 else []),
            *(f"{s:.12g}" for s in self.shares),
        )
        return f"{stable_hash(*parts):016x}"

    def _drawn(self, step: int, count: int) -> list[int]:
        if count == 0:
            return []
        if self._uniform and (self.presence == "present" or self.objectives == 1):
            whole, rest = divmod(count, self.objectives)
            return [*list(range(self.objectives)) * whole, *rotation(self.objectives, rest, self.seed, step)]
        shares = self._extra_shares
        return [draw(shares, self._key, step * count + i) for i in range(count)]

    def _water_fill(self) -> tuple[float, ...]:
        """Shares of the extra positions: totals max(1, lam * share * L), with lam such that they sum to L."""
        extra = self.places - self.objectives
        if extra == 0:
            return self.shares
        wanted = np.asarray(self.shares) * self.places
        rich = np.ones(len(wanted), bool)
        while True:
            scale = (extra + rich.sum()) / wanted[rich].sum()
            kept = rich & (wanted * scale > 1)
            if kept.sum() == rich.sum():
                return normalise(np.where(rich, wanted * scale - 1, 0.0).tolist())
            rich = kept


def rotation(things: int, per_step: int, seed: int, step: int) -> list[int]:
    """``per_step`` < ``things`` distinct things of a step; over time their counts never differ by more than
    one.

    Every ``things`` positions are a fresh permutation. Where one ends inside a step, the next begins with
    things that
    the step does not have yet, so no thing comes twice in a step. This chains permutations, but only inside a
    super-cycle of lcm(things, per_step) positions, so any step is computed without those before it.
    """
    if per_step == 0:
        return []
    steps = math.lcm(things, per_step) // per_step
    cycle, at = divmod(step, steps)
    return _super_cycle(things, per_step, seed, cycle)[at * per_step : (at + 1) * per_step]


@lru_cache(maxsize=64)
def _super_cycle(things: int, per_step: int, seed: int, cycle: int) -> list[int]:
    total = math.lcm(things, per_step)
    result: list[int] = []
    for part in range(total // things):
        order = shuffled(things, seed, "rotation", cycle, part)
        begun = len(result) % per_step
        if begun:
            taken = set(result[-begun:])
            free = [thing for thing in order if thing not in taken]
            head = free[: per_step - begun]
            order = head + [thing for thing in order if thing not in head]
        result.extend(order)
    return result
