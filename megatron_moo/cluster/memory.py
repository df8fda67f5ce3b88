"""Bytes of a rank while it trains.

What the layout holds (parameters, gradients, optimizer, rows) is counted from the modules that the rank would build.
Activations are Megatron's own estimate (``megatron.training.theoretical_memory_usage``; Korthikanti et al., arXiv
2205.05198) with what it leaves out: context parallelism, full recomputation, the loss in fp32, attention scores
where they are materialised, and fp32 training.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, fields
from typing import Any

from megatron_moo.buckets.hierarchy import choose_size, common_size
from megatron_moo.buckets.parking import rooms
from megatron_moo.buckets.passes import kept_bytes_per_value
from megatron_moo.buckets.wire import row_bytes
from megatron_moo.cluster.settle import Settled, quietly
from megatron_moo.cluster.world import Buffer, Stage

_SIZES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
_SIZES |= {"torch.float32": 4, "torch.bfloat16": 2, "torch.float16": 2, "torch.uint8": 1}


@dataclass(frozen=True)
class Memory:
    """Bytes of a rank, by what they are for.

    Attributes:
        parameters: the model's weights.
        gradients: the gradient buffer in fp32, where rows are parked.
        optimizer: this rank's share of main parameters and Adam's moments.
        kept_rows: rows of earlier slots, or sums of scaled gradients (``kept_bytes`` of a run's start event).
        flying_rows: spares and receive buffers as parking needs them, and what packing and feedback hold.
        activations: of the micro-batches in flight.
        loss: logits in fp32 and their gradient.
        scores: attention scores, where no fused attention avoids them.
    """

    parameters: float
    gradients: float
    optimizer: float
    kept_rows: float
    flying_rows: float
    activations: float
    loss: float
    scores: float

    @property
    def total(self) -> float:
        return sum(getattr(self, part.name) for part in fields(self))


def memory_of(settled: Settled, stage: Stage, rows: str | None = None, hold: int | None = None) -> Memory:
    """Bytes of a rank of ``stage``.

    Args:
        settled: the recipe.
        stage: what the rank holds.
        rows, hold: ``moo-rows`` and ``moo-recompute`` to try instead of the recipe's.
    """
    args = settled.args
    size = args.params_dtype.itemsize
    microbatches = args.global_batch_size // (args.data_parallel_size * args.micro_batch_size)
    return Memory(
        parameters=stage.parameters * size,
        gradients=4 * stage.gradient_values,
        optimizer=sum(buffer.values / len(buffer.members) for buffer in stage.buffers)
        * _optimizer_bytes(args),
        kept_rows=kept_bytes(settled, stage, rows, hold),
        flying_rows=_flying(settled, stage),
        activations=_activations(args, max(1, microbatches // settled.config.slots)),
        loss=6 * _tokens(args) * args.padded_vocab_size / args.tensor_model_parallel_size,
        scores=_scores(settled),
    )


def kept_bytes(settled: Settled, stage: Stage, rows: str | None = None, hold: int | None = None) -> int:
    """Bytes between passes, as ``MooStep.cost`` counts them."""
    return kept_bytes_per_value(settled.config, rows, hold) * stage.gradient_values


def _optimizer_bytes(args: Any) -> int:
    """Bytes of optimizer per value of this rank's shard."""
    if args.use_precision_aware_optimizer:
        kinds = (args.main_params_dtype, args.exp_avg_dtype, args.exp_avg_sq_dtype)
        return sum(_SIZES[str(kind)] for kind in kinds)
    return 8 if args.params_dtype.itemsize == 4 else 12


def _flying(settled: Settled, stage: Stage) -> float:
    config = settled.config
    travelling = [buffer for buffer in stage.buffers if len(buffer.members) > 1]
    if settled.args.moo_mixed or not travelling:
        return 0.0
    received = max(
        max(received_bytes(buffer, size, config.wire) for size in buffer.buckets) for buffer in travelling
    )
    if _stays(settled):
        beside = 4 * rooms([buffer.buckets for buffer in travelling])[1]
        # Passes that park nothing use one receive buffer: earlier slots, and Megatron's own sum between solves.
        received = max(beside, received if config.slots > 1 or config.every > 1 else 0)
    if any(group_size(settled, buffer) > 1 for buffer in travelling):
        received += 2 * max(4 * size for buffer in travelling for size in buffer.buckets)
    packed = received if config.wire != "fp32" else 0
    feedback = 4 * _languages_of_a_rank(settled) * stage.gradient_values if config.wire_feedback else 0
    return received + packed + feedback


def _stays(settled: Settled) -> bool:
    """Whether rows are received right where they stay (``parking.py``) wherever there is room for them."""
    config = settled.config
    return (
        config.wire == "fp32" and not config.observe and settled.args.num_distributed_optimizer_instances == 1
    )


def group_size(settled: Settled, buffer: Buffer) -> int:
    """g of the hierarchical exchange of a buffer, 1 where it goes flat."""
    args, config = settled.args, settled.config
    if args.moo_mixed or config.observe or args.num_distributed_optimizer_instances > 1:
        return 1
    in_lane = args.world_size // args.pipeline_model_parallel_size // settled.lanes
    stage = args.world_size // args.pipeline_model_parallel_size
    lanes = [member % stage // in_lane for member in buffer.members]
    nodes = [member // settled.gpus_per_node for member in buffer.members]
    return choose_size(config.exchange, common_size(_first_steps(settled), lanes), nodes, config.wire)


def _first_steps(settled: Settled) -> list[list[list[int]]]:
    """Objectives ``[steps][slots][lanes]`` of the first steps."""
    from megatron_moo.data.schedule import LaneSchedule

    args = settled.args
    schedule = LaneSchedule(
        settled.objectives,
        settled.lanes,
        settled.config.slots,
        args.seed,
        args.moo_presence,
        group=args.moo_lane_group,
    )
    return [schedule.assignment(step) for step in range(8)]


def _languages_of_a_rank(settled: Settled) -> int:
    """Most objectives that a lane computes in the course of a run: in the end all of them where they take turns."""
    steps = _first_steps(settled)
    if any(step != steps[0] for step in steps):
        return settled.objectives
    return max(len({slot[lane] for slot in steps[0]}) for lane in range(settled.lanes))


def received_bytes(buffer: Buffer, bucket: int, wire: str) -> int:
    """Bytes of all rows of a bucket's shard, one from every member."""
    members = len(buffer.members)
    return members * row_bytes(bucket // members, wire)


def _tokens(args: Any) -> int:
    return args.seq_length * args.micro_batch_size // args.context_parallel_size


def _activations(args: Any, microbatches: int) -> float:
    """Megatron's estimate, as its ``report_theoretical_memory`` chooses it, for what recomputation leaves."""
    if args.recompute_granularity != "full":
        return _formula(args, args.num_layers, microbatches)
    every = args.recompute_num_layers or 1
    block = args.recompute_method == "block"
    stored = every if block else math.ceil(args.num_layers / every)
    alive = max(1, args.num_layers - every) if block else every
    divided = args.tensor_model_parallel_size if args.sequence_parallel else 1
    flying = min(1.0, microbatches / args.pipeline_model_parallel_size)
    inputs = stored * args.params_dtype.itemsize * _tokens(args) * args.hidden_size / divided * flying
    one = copy.copy(args)
    one.pipeline_model_parallel_size, one.virtual_pipeline_model_parallel_size = 1, None
    return inputs + _formula(one, alive, microbatches)


def _formula(args: Any, layers: int, microbatches: int) -> float:
    from megatron.training import theoretical_memory_usage as theory

    of = copy.copy(args)
    of.num_layers, of.seq_length = layers, args.seq_length // args.context_parallel_size
    cut = args.sequence_parallel and args.recompute_granularity in ("selective", "full")
    formula = theory.compute_activation_memory if cut else theory.compute_activation_memory_without_sp
    with quietly():
        return float(formula(of, microbatches)) * args.params_dtype.itemsize / 2


def _scores(settled: Settled) -> float:
    """Unfused attention: ``[heads, seq, seq]`` twice in the weights' dtype and once in fp32, a layer."""
    args = settled.args
    if settled.impl == "transformer_engine":
        return 0.0
    layers = 1 if args.recompute_granularity == "full" else args.num_layers
    heads = args.num_attention_heads / args.tensor_model_parallel_size
    size = 2 * args.params_dtype.itemsize + 4
    return layers * heads * size * _tokens(args) * args.seq_length
