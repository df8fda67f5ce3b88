"""Bytes on the wire and time of a step."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_moo.buckets.passes import plan_passes
from megatron_moo.cluster.memory import group_size, received_bytes
from megatron_moo.cluster.settle import Settled, quietly
from megatron_moo.cluster.world import Buffer, Stage


@dataclass(frozen=True)
class Traffic:
    """Gradients and parameters that one rank sends in a step that solves, bytes.

    Attributes:
        inside: gradients to ranks of its own node.
        between: gradients to ranks of other nodes.
        ring: what Megatron's ring reduce-scatter would send from this rank.
        ring_between: the ring's bytes out of the node, as this rank's part.
        gather: parameters, the all-gather after the step.
    """

    inside: int
    between: int
    ring: int
    ring_between: float
    gather: int

    @property
    def sent(self) -> int:
        """``bytes_sent`` of a step in metrics.jsonl."""
        return self.inside + self.between


@dataclass(frozen=True)
class Seconds:
    """Time of a step.

    Attributes:
        compute: forward and backward of all passes.
        plain: the same for plain Megatron: one pass over the same batch.
        wire: gradients and parameters, as if nothing were hidden behind the backward pass.
        rows: reading rows for Gramians and combination.
    """

    compute: float
    plain: float
    wire: float
    rows: float

    @property
    def total(self) -> float:
        return self.compute + self.wire + self.rows


def traffic_of(settled: Settled, stage: Stage) -> Traffic:
    """What a rank of ``stage`` sends; ranks are numbered node by node."""
    inside = between = ring = gather = 0
    ring_between = 0.0
    size = settled.args.params_dtype.itemsize
    for buffer in stage.buffers:
        others = len(buffer.members) - 1
        if not others:
            continue
        nodes = [member // settled.gpus_per_node for member in buffer.members]
        here = stage.rank // settled.gpus_per_node
        away = sum(node != here for node in nodes)
        for members, each in _gradient_bytes(settled, stage, buffer):
            gone = sum(nodes[member] != here for member in members)
            between += each * gone
            inside += each * (len(members) - 1 - gone)
        once = 4 * buffer.values * others // len(buffer.members)
        ring += once
        # A ring enters and leaves a node once, however many of its ranks it passes there.
        ring_between += once / (len(buffer.members) - away) if away else 0.0
        gather += size * buffer.values * others // len(buffer.members)
    return Traffic(inside, between, ring, ring_between, gather)


def _gradient_bytes(settled: Settled, stage: Stage, buffer: Buffer) -> list[tuple[range, int]]:
    """Members of the buffer (this rank among them) and the bytes for each of the others, of all passes of a step.

    Counted bucket by bucket as ``Exchange`` does; scaled gradients are reduced once, summed.
    """
    config, members = settled.config, len(buffer.members)
    everyone, me = range(members), buffer.members.index(stage.rank)
    passes = plan_passes(config.slots, config.recompute)
    exchanged = 0 if settled.args.moo_mixed else sum(not now.scaled for now in passes)
    size = group_size(settled, buffer)
    sends: list[tuple[range, int]] = []
    for bucket in buffer.buckets:
        if size > 1:
            first = me - me % size
            sends.append((range(first, first + size), exchanged * 4 * bucket // size))
        across = range(me % size, members, size) if size > 1 else everyone
        sends.append((across, exchanged * received_bytes(buffer, bucket, config.wire) // members))
        if settled.args.moo_mixed or exchanged < len(passes):
            sends.append((everyone, 4 * bucket // members))
    return sends


def seconds_of(
    settled: Settled,
    stage: Stage,
    traffic: Traffic,
    tflops: float,
    inside: float,
    between: float,
    memory: float,
) -> Seconds:
    """Time of a step at assumed speeds.

    Args:
        settled, stage, traffic: the recipe, what the rank holds and what it sends.
        tflops: TFLOP/s that a GPU reaches in training.
        inside, between, memory: GB/s of a GPU to its node, to other nodes, and to its own memory.
    """
    from megatron.training.training import num_floating_point_operations

    args, config = settled.args, settled.config
    with quietly():
        flops = num_floating_point_operations(args, args.global_batch_size)
    repeated = 4 / 3 if args.recompute_granularity == "full" else 1.0
    plain = repeated * flops / (args.world_size * tflops * 1e12)
    passes = len(plan_passes(config.slots, config.recompute))
    away = traffic.between > 0
    wire = traffic.inside / inside / 1e9 + traffic.between / between / 1e9
    wire += traffic.gather / (between if away else inside) / 1e9
    rows = 2 * config.slots * 4 * stage.gradient_values / memory / 1e9
    return Seconds(plain * passes / config.slots, plain, wire, rows)
