"""Which values of the rows belong to which block, and how a kernel's programs share them out."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from itertools import pairwise

import torch


class SegmentTable:
    """Pieces of a shard, each of one block; one launch of a kernel works on all of them.

    Args:
        segments: (start, end, block) or (start, end, block, kind) in values of a row; empty ones are skipped.
        kinds: keep the segments of these kinds only (copies and partial sums do not enter a Gramian as they are).

    Raises:
        ValueError: for a segment that ends before it starts, or a negative place or block.

    Attributes:
        segments: (start, end, block) of those kept, blocks together, in the order in which blocks first appear.
        blocks: the blocks, each once, in that order. Results per block come in it.
        end: one more than the last value that is read.
    """

    def __init__(self, segments: Iterable[tuple[int, ...]], kinds: Collection[int] | None = None) -> None:
        kept: dict[int, list[tuple[int, int]]] = {}
        for start, end, block, *kind in segments:
            if not 0 <= start <= end or block < 0:
                raise ValueError(f"segment ({start}, {end}) of block {block}")
            if start < end and (kinds is None or (kind and kind[0] in kinds)):
                kept.setdefault(block, []).append((start, end))
        self.blocks = tuple(kept)
        self.segments = tuple((*cut, block) for block, cuts in kept.items() for cut in cuts)
        self.end = max((end for _, end, _ in self.segments), default=0)
        self._work: dict[tuple[int, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}

    def work(self, chunk: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Work items of at most ``chunk`` values, cut at multiples of ``chunk``.

        Returns:
            items ``[I, 3]`` int64 (start, end, block), and ``[blocks + 1]`` int64: the items of ``blocks[b]`` are
            ``first[b]`` to ``first[b + 1]``. Both are made once for a chunk and device.
        """
        if (chunk, device) not in self._work:
            items: list[tuple[int, int, int]] = []
            first = []
            for start, end, block in self.segments:
                if not items or items[-1][2] != block:
                    first.append(len(items))
                cuts = [start, *range((start // chunk + 1) * chunk, end, chunk), end]
                items += [(a, b, block) for a, b in pairwise(cuts)]
            first.append(len(items))
            table = torch.tensor(items, dtype=torch.int64).view(-1, 3)
            self._work[chunk, device] = (
                on_device(table, device),
                on_device(torch.tensor(first, dtype=torch.int64), device),
            )
        return self._work[chunk, device]


@lru_cache(maxsize=1024)
def whole(n: int) -> SegmentTable:
    """The table of one block that has all ``n`` values."""
    return SegmentTable([(0, n, 0)])


def on_device(table: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A small table of the host on ``device``, without waiting for a GPU."""
    if device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)
