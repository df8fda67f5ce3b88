"""Blocks: the parameters that share one set of weights, and where a rank's shard of a bucket holds them.

    bucket (padded)   |  p3  |  p2      |   p1  | pad |
    shards            |   rank 0   |    rank 1        |
    segments of rank 1             [ p2 |   p1  ]       each belongs to one block and has one kind

A block may straddle shards, buckets, tensor-parallel and pipeline ranks: Gramians add over disjoint pieces, so each
rank sums what it owns and one all-reduce completes every block (DESIGN section 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import torch

from megatron_moo.kernels.segments import SegmentTable

BLOCKS = ("bucket", "layer", "module", "param", "model", "auto")
# Parameters that the user leaves at the plain mean.
EXCLUDED = "excluded"

_LAYER = re.compile(r"^(.*?\blayers\.\d+)\.(.*)$")
_HEAD = ("output_layer", "final_layernorm", "decoder.final_layernorm")


class Kind(Enum):
    """How a segment's rows enter the Gramian."""

    OWN = "own"  # this rank alone holds these values
    COPY = "copy"  # another rank counts the same values: leave them out
    PARTIAL_TP = "partial_tp"  # a summand over tensor-parallel ranks: sum a copy first
    PARTIAL_EMBD = "partial_embd"  # a summand over the embedding group (tied over pipeline stages)


@dataclass(frozen=True)
class Segment:
    """Values ``[start, end)`` of a rank's shard; ``block`` indexes the model's list of block names."""

    start: int
    end: int
    block: int
    kind: Kind


@dataclass(frozen=True)
class Placed:
    """A parameter in a bucket: values ``[start, end)`` of the bucket, its global name and kind."""

    name: str
    start: int
    end: int
    kind: Kind


def block_of(name: str, block: str, bucket: str, exclude: str | None = None) -> str:
    """The block that holds parameter ``name``.

    Args:
        name: global parameter name (layers counted over the whole model).
        block: one of :data:`BLOCKS`.
        bucket: name of the bucket that holds the parameter.
        exclude: regular expression; parameters in which it is found form the block :data:`EXCLUDED`.

    Raises:
        ValueError: for an unknown kind of block.
    """
    if exclude is not None and re.search(exclude, name):
        return EXCLUDED
    if block == "model":
        return "model"
    if block == "param":
        return name
    if block == "bucket":
        return bucket
    block = (
        "module" if block == "auto" else block
    )  # what is measured; who shares weights changes (adaptive.py)
    if block not in ("layer", "module"):
        raise ValueError(f"unknown block {block!r}, expected one of {', '.join(BLOCKS)}")
    if match := _LAYER.match(name):
        layer, rest = match.groups()
        return layer if block == "layer" else f"{layer}.{_module_of(rest)}"
    if name.startswith(_HEAD):
        return "head" if block == "layer" or name.startswith("output_layer") else "final_norm"
    return "embedding" if name.startswith("embedding") else name.split(".", 1)[0]


def _module_of(name: str) -> str:
    if "norm" in name:
        return "norms"
    return "attention" if "attention" in name else "mlp" if name.startswith("mlp") else name.split(".", 1)[0]


def natural_key(name: str) -> list[tuple[int, str]]:
    """Sort key that puts ``layers.10`` after ``layers.9``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def segments_of_shard(
    placed: Iterable[Placed], shard: tuple[int, int], block_index: Mapping[str, int]
) -> tuple[Segment, ...]:
    """Cut a bucket's parameters to ``shard`` and join neighbours of the same block and kind.

    Joining reaches over padding: Megatron's gradient buffers hold zeros there, which add nothing.

    Args:
        placed: the bucket's parameters.
        shard: first and last-plus-one value of the shard in the bucket.
        block_index: block of a parameter, by its name.
    """
    low, high = shard
    segments: list[Segment] = []
    for item in sorted(placed, key=lambda item: item.start):
        start, end = max(item.start, low) - low, min(item.end, high) - low
        if start >= end:
            continue
        block = block_index[item.name]
        last = segments[-1] if segments else None
        if last is not None and (last.block, last.kind) == (block, item.kind):
            segments[-1] = Segment(last.start, end, block, item.kind)
        else:
            segments.append(Segment(start, end, block, item.kind))
    return tuple(segments)


@dataclass(eq=False)
class BucketPlan:
    """One bucket as this rank sees it.

    Attributes:
        name: unique name of the bucket on this rank.
        grad: the bucket's gradient buffer, ``[members * shard]``.
        rank: this rank's place in the bucket's data-parallel group.
        lanes: lane of every member of that group, ``[members]``.
        segments: what this rank's shard holds.
        whole: what the whole bucket holds, with places in the bucket.
        instances: process group of this shard's owners in the other distributed-optimizer instances, or None. Their
            rows are summands of ours.
        ranks: global rank of every member, ``[members]``.
        nodes: node of every member, ``[members]``; one node where nothing is known.
        hierarchy: how its exchange can go in two stages, or None.
        group: g of the step under way: so many members next to each other arrive as one row; 1 is the flat exchange.
        at: where the rows of the pass under way wait (``parking.py``); None before they arrived.
    """

    name: str
    grad: torch.Tensor
    rank: int
    lanes: tuple[int, ...]
    segments: tuple[Segment, ...]
    whole: tuple[Segment, ...] = ()
    instances: Any = None
    ranks: tuple[int, ...] = ()
    nodes: tuple[int, ...] = ()
    hierarchy: Any = None
    group: int = 1
    at: torch.Tensor | None = None

    @cached_property
    def own_table(self) -> SegmentTable:
        """The segments that this rank alone counts, for a kernel that works on all blocks at once."""
        return SegmentTable((s.start, s.end, s.block) for s in self.segments if s.kind is Kind.OWN)

    @cached_property
    def table(self) -> SegmentTable:
        """All segments."""
        return SegmentTable((s.start, s.end, s.block) for s in self.segments)

    @property
    def row_lanes(self) -> tuple[int, ...]:
        """A lane that computes the objective of each row, ``[members / g]``."""
        return self.lanes[:: self.group]

    @property
    def members(self) -> int:
        return len(self.lanes)

    @property
    def shard(self) -> int:
        """Values per rank."""
        return self.grad.numel() // self.members

    @property
    def own(self) -> torch.Tensor:
        """This rank's shard of the gradient buffer, ``[shard]``: what the optimizer reads."""
        return self.grad[self.rank * self.shard : (self.rank + 1) * self.shard]

    @property
    def rows(self) -> torch.Tensor:
        """The gradient buffer seen as the rows that arrive, ``[members / g, shard]``."""
        return self.grad.view(self.members, self.shard)[: self.members // self.group]

    @property
    def parked(self) -> torch.Tensor:
        """The rows that wait for the weights, ``[members / g, shard]``."""
        return self.rows if self.at is None else self.at
