"""Everything that ``megatron-moo plan`` says, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from megatron_moo.buckets.passes import plan_passes
from megatron_moo.cluster import world
from megatron_moo.cluster.memory import Memory, memory_of
from megatron_moo.cluster.settle import Settled
from megatron_moo.cluster.traffic import Seconds, Traffic, seconds_of, traffic_of


@dataclass(frozen=True)
class Machine:
    """What a GPU and its wires are taken for.

    Attributes:
        gpus: in all.
        gpus_per_node: of a node.
        memory: bytes of a GPU.
        reserve: bytes of it that CUDA, NCCL and the allocator's gaps take.
        tflops: TFLOP/s reached in training.
        inside, between, hbm: GB/s of a GPU to its node, to other nodes, and to its own memory.
    """

    gpus: int
    gpus_per_node: int
    memory: float
    reserve: float
    tflops: float
    inside: float
    between: float
    hbm: float


@dataclass(frozen=True)
class Choice:
    """A way to keep rows between slots.

    Attributes:
        rows, hold: ``moo-rows`` and ``moo-recompute``.
        passes: of a step.
        bytes: of the fullest rank.
        fits: within the memory of a GPU.
    """

    rows: str
    hold: int
    passes: int
    bytes: float
    fits: bool


@dataclass(frozen=True)
class Estimate:
    """What a recipe needs.

    Attributes:
        parameters: of the whole model.
        fullest: memory of the rank that needs most.
        stage: its pipeline stage.
        traffic: what a rank sends in a step.
        seconds: time of a step at the machine's assumed speeds.
        passes: of a step that solves.
        fits: whether the fullest rank fits.
        choices: ways to keep rows, the fewest passes first; one where there is a single slot.
    """

    settled: Settled
    machine: Machine
    parameters: int
    fullest: Memory
    stage: int
    traffic: Traffic
    seconds: Seconds
    passes: int
    fits: bool
    choices: tuple[Choice, ...]

    @property
    def advice(self) -> Choice | None:
        """The first choice that fits, or None."""
        return next((choice for choice in self.choices if choice.fits), None)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: bytes and seconds."""
        settled = self.settled
        return {
            "gpus": self.machine.gpus,
            "nodes": -(-self.machine.gpus // self.machine.gpus_per_node),
            "objectives": settled.objectives,
            "lanes": settled.lanes,
            "slots": settled.config.slots,
            "passes": self.passes,
            "global_batch_size": settled.args.global_batch_size,
            "parameters": self.parameters,
            "stage": self.stage,
            "bytes": {**asdict(self.fullest), "total": self.fullest.total},
            "limit_bytes": self.machine.memory - self.machine.reserve,
            "fits": self.fits,
            "choices": [asdict(choice) for choice in self.choices],
            "wire_bytes": asdict(self.traffic),
            "seconds": {**asdict(self.seconds), "total": self.seconds.total},
            "notes": settled.notes,
        }


def estimate(settled: Settled, machine: Machine) -> Estimate:
    """Count what every stage holds, and say whether it fits.

    Raises:
        MooError: where this process is a rank of something.
    """
    stages = world.stages(settled.args)
    parameters = world.total_parameters(settled.args)
    fullest, stage = max(
        ((memory_of(settled, stage), stage) for stage in stages), key=lambda pair: pair[0].total
    )
    sends = max((traffic_of(settled, stage) for stage in stages), key=lambda t: t.sent)
    seconds = seconds_of(settled, stage, sends, machine.tflops, machine.inside, machine.between, machine.hbm)
    limit = machine.memory - machine.reserve
    return Estimate(
        settled,
        machine,
        parameters,
        fullest,
        stage.stage,
        sends,
        seconds,
        len(plan_passes(settled.config.slots, settled.config.recompute)),
        fullest.total <= limit,
        tuple(_choices(settled, stages, limit)),
    )


def _choices(settled: Settled, stages: list[world.Stage], limit: float) -> list[Choice]:
    """Every way to keep rows: fewest passes first, of these the exact rows first."""
    slots, observe = settled.config.slots, settled.config.observe
    found = []
    repeats = (
        not observe and not settled.config.wire_feedback
    )  # MooConfig refuses repeated passes with either
    for hold in (0, *range(slots - 2, 0, -1)) if repeats else (0,):
        for rows in ("fp32", "bf16") if slots > 1 and not observe else ("fp32",):
            need = max(memory_of(settled, stage, rows, hold).total for stage in stages)
            found.append(Choice(rows, hold, len(plan_passes(slots, hold)), need, need <= limit))
    return sorted(found, key=lambda choice: (choice.passes, choice.rows != "fp32", choice.hold))
