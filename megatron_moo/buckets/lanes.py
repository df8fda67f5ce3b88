"""Who must see the same data: lanes of ranks, numbered alike everywhere.

    ranks        0   1   2   3   4   5   6   7        TP 2, PP 1, DP 4, EP 2
    TP peers    (0   1) (2   3) (4   5) (6   7)
    EP peers    (0   .   2   .) (4   .   6   .)       an expert's gradient sums its EP peers
    lanes       [0           0] [1           1]       D = 2

A lane is a connected component of the ranks under "is a tensor, pipeline, context or expert-parallel peer of". All
ranks of a lane work on the same objective in the same slot. Ranks of a lane with different data-parallel ranks
(expert-parallel peers) are its *peers*: they share the objective and split the lane's samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Lanes:
    """The lanes of a world.

    Attributes:
        of_rank: lane of every global rank, ``[world]``; lanes are numbered by their lowest rank.
        lane: this rank's lane.
        count: D, the number of lanes.
        peer: this rank's place among its lane's data-parallel ranks.
        peers: how many data-parallel ranks a lane has.
    """

    of_rank: tuple[int, ...]
    lane: int
    count: int
    peer: int
    peers: int


def connect(groups: Sequence[Sequence[int]], world: int) -> list[int]:
    """Number the connected components of ``world`` ranks under the given peer groups, by lowest rank."""
    parent = list(range(world))

    def root(rank: int) -> int:
        while parent[rank] != rank:
            rank = parent[rank]
        return rank

    for group in groups:
        for rank in group[1:]:
            low, high = sorted((root(group[0]), root(rank)))
            parent[high] = low
    roots = sorted({root(rank) for rank in range(world)})
    return [roots.index(root(rank)) for rank in range(world)]


def find_lanes(peer_groups: Sequence[Sequence[int]], dp_rank: int) -> Lanes:
    """Agree on the lanes of the whole world; a collective call.

    Args:
        peer_groups: global ranks of this rank's tensor, pipeline, context and expert-parallel groups.
        dp_rank: this rank's data-parallel rank (context parallelism not counted).
    """
    world, rank = dist.get_world_size(), dist.get_rank()
    mine = ([list(group) for group in peer_groups], dp_rank)
    everyone: list = [None] * world
    dist.all_gather_object(everyone, mine)
    of_rank = connect([group for groups, _ in everyone for group in groups], world)
    lane = of_rank[rank]
    dp_ranks = sorted({dp for other, (_, dp) in enumerate(everyone) if of_rank[other] == lane})
    return Lanes(tuple(of_rank), lane, max(of_rank) + 1, dp_ranks.index(dp_rank), len(dp_ranks))
