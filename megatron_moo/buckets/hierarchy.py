"""The hierarchical exchange: ranks of one objective sum their rows first, then rows travel across objectives.

    members       0   1 | 2   3 | 4   5 | 6   7       groups of g = 2 members that compute the same objective
    stage 1      (0   1) (2   3) (4   5) (6   7)      all-to-all inside a group, summed in fp32: the member at
                                                      position p holds its group's row for the shards of the members
                                                      at position p of every group
    stage 2      (0   2   4   6) (1   3   5   7)      all-to-all of the members at equal positions: one row a group

Every rank sends (1 - 1/D) of the bucket, as in the flat exchange and in a ring: (1 - 1/g) of it in stage 1, always in
fp32, and G - 1 rows in stage 2, in the wire's type (G = D / g groups). What differs is where it goes: with a
group inside a node only stage 2 leaves it, 1/g of the bucket (DESIGN section 3, "Bytes"). The schedule puts equal
objectives side by side (``data/schedule.py``); a step in which a group computes different objectives goes flat.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.buckets.wire import row_bytes
from megatron_moo.errors import MooError
from megatron_moo.kernels.rows import GROUP

EXCHANGES = ("auto", "flat", "hierarchical")
# Twins inside a group are summed before their cosine can be taken: the noise floor is measured in flat steps.
FLAT_EVERY = 100
_STEPS_LOOKED_AT = 64


@dataclass(frozen=True)
class Hierarchy:
    """How the members of a bucket are grouped.

    Attributes:
        size: g, members of a group.
        inside: process group of this rank's group.
        across: process group of the members at this rank's position.
    """

    size: int
    inside: Any
    across: Any


def nodes_of_ranks(ranks_per_node: int | None) -> list[int]:
    """Node of every global rank, ``[world]``: by host name, or counted. A collective call."""
    world = dist.get_world_size()
    if ranks_per_node is not None:
        return [rank // ranks_per_node for rank in range(world)]
    names: list = [None] * world
    dist.all_gather_object(names, socket.gethostname())
    return [names.index(name) for name in names]


def common_size(assignments: Sequence[Sequence[Sequence[int]]], lanes: Sequence[int]) -> int:
    """The largest g such that every run of g members computes one objective.

    Args:
        assignments: ``[steps][slots][lanes]`` objectives.
        lanes: lane of every member of the bucket.
    """
    size = len(lanes)
    for step in assignments:
        for slot in step:
            objectives, start = [slot[lane] for lane in lanes], 0
            for end in range(1, len(lanes) + 1):
                if end == len(lanes) or objectives[end] != objectives[start]:
                    size, start = math.gcd(size, end - start), end
    return size


def one_objective_each(assignment: Sequence[Sequence[int]], lanes: Sequence[int], size: int) -> bool:
    """Whether every group of ``size`` members computes one objective in each slot of a step."""
    return common_size([assignment], lanes) % size == 0


def between_nodes(nodes: Sequence[int], size: int, wire: str = "fp32") -> float:
    """What all members of a bucket send to other nodes, in buckets of fp32; ``size`` 1 is the flat exchange.

    Args:
        nodes: node of every member.
        size: g.
        wire: how rows travel in the second stage, and in the flat exchange; the first sums gradients in fp32.
    """
    members, sent = len(nodes), 0.0
    narrow = row_bytes(GROUP, wire) / row_bytes(GROUP, "fp32")
    for me in range(members):
        for other in range(members):
            if nodes[me] == nodes[other]:
                continue
            if me // size == other // size:
                sent += 1.0 / size
            elif me % size == other % size:
                sent += narrow / members
    return sent


def choose_size(exchange: str, largest: int, nodes: Sequence[int], wire: str = "fp32") -> int:
    """g for a bucket, 1 for the flat exchange.

    Args:
        exchange: one of :data:`EXCHANGES`; ``auto`` groups where that sends less between nodes.
        largest: what :func:`common_size` found.
        nodes: node of every member.
        wire: one of :data:`~megatron_moo.buckets.wire.WIRES`.
    """
    if exchange == "flat" or largest == 1:
        return 1
    sizes = [size for size in range(2, largest + 1) if largest % size == 0]
    best = min(sizes, key=lambda size: (between_nodes(nodes, size, wire), -size))
    if exchange == "auto" and between_nodes(nodes, best, wire) >= between_nodes(nodes, 1, wire):
        return 1
    return best


def find_hierarchies(
    plans: Sequence[BucketPlan],
    exchange: str,
    wire: str,
    schedule: Any,
    nodes: Sequence[int],
    first: int,
    timeout: timedelta | None = None,
) -> None:
    """Give every bucket its :class:`Hierarchy` (or none) and say where its members are. A collective call.

    Args:
        plans: the rank's buckets.
        exchange: one of :data:`EXCHANGES`.
        wire: how rows travel.
        schedule: tells the objectives of a step.
        nodes: node of every global rank.
        first: the step that comes next.
        timeout: of the new process groups; torch's own without it.

    Raises:
        MooError: when ``hierarchical`` was asked for and nothing can be grouped.
    """
    assignments = [schedule.assignment(first + step) for step in range(_STEPS_LOOKED_AT)]
    sizes: dict[tuple[int, ...], int] = {}
    for plan in plans:
        plan.nodes = tuple(nodes[rank] for rank in plan.ranks)
        if plan.ranks not in sizes and plan.instances is None:
            sizes[plan.ranks] = choose_size(exchange, common_size(assignments, plan.lanes), plan.nodes, wire)
    everyone: list = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, sorted((ranks, size) for ranks, size in sizes.items() if size > 1))
    wanted = sorted({pair for pairs in everyone for pair in pairs})
    if exchange == "hierarchical" and not wanted:
        raise MooError(
            "no two neighbouring ranks compute the same objective in every step",
            "--moo-exchange hierarchical",
            "use more data-parallel ranks than objectives, a multiple of them, or --moo-exchange auto",
        )
    found = {(ranks, size): _make_groups(ranks, size, timeout) for ranks, size in wanted}
    for plan in plans:
        plan.hierarchy = found.get((plan.ranks, sizes.get(plan.ranks, 1)))


def _make_groups(ranks: tuple[int, ...], size: int, timeout: timedelta | None) -> Hierarchy | None:
    """The process groups of one bucket's members; a collective call of the whole world."""
    runs = [ranks[start : start + size] for start in range(0, len(ranks), size)]
    me, mine = dist.get_rank(), {}
    for kind, parts in (("inside", runs), ("across", [ranks[start::size] for start in range(size)])):
        for part in parts:
            group = dist.new_group(list(part), timeout=timeout)
            if me in part:
                mine[kind] = group
    return Hierarchy(size, **mine) if mine else None


def pack_for_group(plan: BucketPlan, out: torch.Tensor) -> torch.Tensor:
    """The bucket with the shards of equal positions side by side, ``[g, G, shard]``: what stage 1 sends."""
    shards = plan.grad.view(-1, plan.group, plan.shard).transpose(0, 1)
    out.view(shards.shape).copy_(shards)
    return out


def sum_of_group(received: torch.Tensor, size: int) -> torch.Tensor:
    """Sum what stage 1 received from the g members of the group, in fp32: ``[G * shard]``."""
    return torch.sum(received.view(size, -1), dim=0, dtype=torch.float32)
