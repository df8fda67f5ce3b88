"""The passes of a step: which slot each computes, which rows are at hand, what is formed from them.

Keeping the rows of S - 1 slots, a step has S passes, and all rows are there in the last. With ``--moo-recompute H``
the rows of at most H slots are kept at a time. Two rows must be at hand together for their inner product, so passes
are repeated until every pair of slots has met, and once more to add the scaled gradients up in one buffer::

    S = 4, H = 1    0  1  2  3 | 1  2  3 | 2  3 | weights | 0  1  2  3
    kept               0  0  0      1  1      2
"""

from __future__ import annotations

from dataclasses import dataclass

from megatron_moo.buckets.config import MooConfig


@dataclass(frozen=True)
class Pass:
    """One run of forward and backward over a slot's micro-batches.

    Attributes:
        slot: the slot that is computed.
        held: slots whose rows are kept beside those that arrive.
        pairs: pairs of slots (first <= second) whose inner products are counted after this pass; empty when its rows
            are only kept.
        first: the slot's first pass of the step: losses and tokens are booked.
        scaled: the gradient is scaled by weights that are known and reduced by Megatron.
        resolves: the step's weights are settled after this pass.
    """

    slot: int
    held: tuple[int, ...] = ()
    pairs: frozenset[tuple[int, int]] = frozenset()
    first: bool = True
    scaled: bool = False
    resolves: bool = False


def plan_passes(slots: int, hold: int = 0) -> tuple[Pass, ...]:
    """The passes of a step that solves.

    Args:
        slots: S.
        hold: keep the rows of at most so many slots; 0 keeps all.
    """
    last = slots - 1
    hold = min(hold, last) if hold else last
    passes: list[Pass] = []
    for start in range(0, max(last, 1), max(hold, 1)):
        end = min(start + hold, last)
        kept = tuple(range(start, end))
        passes += [Pass(slot, kept[: slot - start], first=start == 0) for slot in kept]
        for slot in range(end, slots):
            pairs = {(earlier, slot) for earlier in kept}
            if slot == end:
                pairs |= {(a, b) for a in kept for b in kept if a <= b}
            if end == last:
                pairs.add((slot, slot))
            passes.append(Pass(slot, kept, frozenset(pairs), start == 0, resolves=end == last))
    if hold < last:
        passes += scaled_passes(slots, first=False)
    return tuple(passes)


def scaled_passes(slots: int, first: bool) -> tuple[Pass, ...]:
    """Passes under known weights; ``first`` when nothing else of the step came before them."""
    return tuple(
        Pass(slot, first=first, scaled=True, resolves=first and slot == slots - 1) for slot in range(slots)
    )


def kept_bytes_per_value(config: MooConfig, rows: str | None = None, hold: int | None = None) -> int:
    """Bytes that a rank keeps between the passes of a step, for a value of its gradient buffers, at most.

    They are rows of earlier slots, or the fp32 sum of scaled gradients: in the last passes of ``--moo-recompute``,
    and between the solves of ``--moo-every``. What ``--moo-observe`` has seen so far stays in fp32 whatever
    ``--moo-rows`` says, or the update would not be Megatron's.

    Args:
        config: the user's choice.
        rows, hold: ``--moo-rows`` and ``--moo-recompute`` to try instead of the user's.
    """
    if config.observe:
        return 4 * (config.slots - 1)
    passes = plan_passes(config.slots, config.recompute if hold is None else hold)
    kept = max(len(now.held) for now in passes) * (2 if (rows or config.row_dtype) == "bf16" else 4)
    summed = passes[-1].scaled or (config.every > 1 and config.slots > 1)
    return max(kept, 4 if summed else 0)
