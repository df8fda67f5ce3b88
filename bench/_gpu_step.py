"""MOO's own part of a training step of an 8B model on one device, beside that model's backward pass.

One process plays one rank of D: the buckets, blocks, parking, Gramians, the reduction, the solve and the combination
are the step's own (:class:`~megatron_moo.buckets.step.MooStep`); only the wire is missing, so the rows of the other
ranks are whatever lies where they would be received.
"""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan, Kind, Placed, block_of, natural_key, segments_of_shard
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.step import MooStep
from megatron_moo.moo import make_method

# Where Megatron's gradient buffer starts a parameter and ends a bucket (values).
_PARAM, _BUCKET = 64, 128


@dataclass(frozen=True)
class Shape:
    """A model and its layout; the defaults are Llama-3-8B's (``kv`` is the width of keys and values)."""

    layers: int = 32
    hidden: int = 4096
    ffn: int = 14336
    kv: int = 1024
    heads: int = 32
    vocab: int = 128256
    tokens: int = 8192
    lanes: int = 8
    bucket: int = 40_000_000

    def parameters(self) -> list[tuple[str, int]]:
        """(name, values) from the last layer to the first, as the gradient buffer holds them."""
        attention = (self.hidden + 2 * self.kv) * self.hidden
        layer = [
            ("mlp.linear_fc2.weight", self.ffn * self.hidden),
            ("mlp.linear_fc1.weight", 2 * self.ffn * self.hidden),
            ("pre_mlp_layernorm.weight", self.hidden),
            ("self_attention.linear_qkv.weight", attention),
            ("self_attention.linear_proj.weight", self.hidden**2),
            ("input_layernorm.weight", self.hidden),
        ]
        found = [("output_layer.weight", self.vocab * self.hidden)]
        found.append(("decoder.final_layernorm.weight", self.hidden))
        for number in reversed(range(self.layers)):
            found += [(f"decoder.layers.{number}.{name}", size) for name, size in layer]
        return [*found, ("embedding.word_embeddings.weight", self.vocab * self.hidden)]

    def buckets(self) -> list[tuple[list[Placed], int]]:
        """(parameters, values) of every bucket."""
        found: list[tuple[list[Placed], int]] = []
        placed: list[Placed] = []
        end = 0
        last = math.lcm(_BUCKET, self.lanes)
        for name, size in self.parameters():
            start = -(-end // _PARAM) * _PARAM
            end = start + size
            placed.append(Placed(name, start, end, Kind.OWN))
            if end >= self.bucket:
                found.append((placed, -(-end // last) * last))
                placed, end = [], 0
        return [*found, (placed, -(-end // last) * last)] if placed else found

    def fitting(self, room: int) -> Shape:
        """The model with as many layers as ``room`` bytes hold, with two buckets of the largest size beside it."""
        for layers in range(self.layers, 0, -1):
            fewer = replace(self, layers=layers)
            sizes = [size for _, size in fewer.buckets()]
            if 4 * (sum(sizes) + 2 * max(sizes)) <= room:
                return fewer
        raise MemoryError(f"{room / 1e9:.1f} GB do not hold the gradients of one layer")


class _EveryLane(MooStep):
    """What the other ranks would report of their objectives is reported here."""

    def count(self, amount: torch.Tensor | float) -> None:
        self._counts += amount


class _OneEach:
    def __init__(self, lanes: int) -> None:
        self._lanes = lanes

    def assignment(self, step: int) -> list[list[int]]:
        """Every lane computes an objective of its own."""
        return [list(range(self._lanes))]


class WholeStep:
    """A rank's step, again and again: :meth:`begin`, then :meth:`run` from the first row to the update.

    Args:
        shape: of the model.
        device: where it runs.
        method: solves.
    """

    def __init__(self, shape: Shape, device: torch.device, method: str = "cagrad") -> None:
        buckets = shape.buckets()
        grads = torch.empty(sum(size for _, size in buckets), device=device).normal_()
        names = {item.name: block_of(item.name, "layer", "") for placed, _ in buckets for item in placed}
        blocks = sorted(set(names.values()), key=natural_key)
        index = {name: blocks.index(block) for name, block in names.items()}
        plans = []
        for number, ((placed, size), grad) in enumerate(
            zip(buckets, grads.split([size for _, size in buckets]), strict=True)
        ):
            segments = segments_of_shard(placed, (0, size // shape.lanes), index)
            plans.append(BucketPlan(f"bucket {number}", grad, 0, tuple(range(shape.lanes)), segments))
        objectives = [f"objective {k}" for k in range(shape.lanes)]
        self.step = _EveryLane(MooConfig(method), make_method(method), objectives, _OneEach(shape.lanes))
        self.step.place(plans, blocks, "", 0, counts_tokens=True, world=dist.group.WORLD)
        self._number = -1
        self._received: dict[str, torch.Tensor] = {}
        self._elsewhere: torch.Tensor | None = None

    def begin(self) -> None:
        """Start a step and put numbers where the wire would; not timed."""
        self._number += 1
        self.step.begin(self._number)
        self.step.begin_pass(self.step.passes[0])
        for plan in self.step.plans:
            room = self.step.room(plan)  # before anything arrived: the one bucket with room of its own
            if room is not None:
                room.normal_()

    def run(self) -> None:
        """Park all rows, form their Gramians, reduce, solve, combine."""
        for plan in self.step.plans:
            room = self.step.room(plan)
            rows = self._buffer(plan.grad) if room is None else room
            self.step.arrived(plan, rows.view(-1, plan.shard))
        self.step.count(1.0)
        self.step.end_pass()

    def check(self) -> None:
        """Raise when a row was left out: what is not read costs nothing."""
        last = self.step.last
        assert last is not None
        if bool(last.dropped.any()):
            raise RuntimeError("the rows of the timed step were not finite")

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        """A receive buffer for rows that are copied home, made once."""
        if self._elsewhere is None:
            largest = max(plan.grad.numel() for plan in self.step.plans)
            self._elsewhere = torch.empty(largest, device=like.device).normal_()
        return self._elsewhere[: like.numel()]


@contextlib.contextmanager
def alone(device: torch.device) -> Iterator[None]:
    """A world of this process alone, for the step's one reduction."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def seconds(
    run: Callable[[], object],
    device: torch.device,
    repetitions: int = 20,
    before: Callable[[], object] = lambda: None,
) -> float:
    """Median of single runs, on a GPU by events; ``before`` each of them is not timed."""
    for _ in range(min(3, repetitions - 1)):
        before()
        run()
    times = []
    for _ in range(repetitions):
        before()
        if device.type != "cuda":
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
            continue
        began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()  # what ``before`` started is over, and nothing is queued that would hide the host
        began.record()
        run()
        ended.record()
        ended.synchronize()
        times.append(began.elapsed_time(ended) / 1e3)
    return statistics.median(times)


def moo_seconds(shape: Shape, device: torch.device, repetitions: int = 20) -> tuple[float, dict[str, float]]:
    """Seconds of MOO in a step, and those of its phases in the last one (``phase_s`` of the metrics)."""
    with alone(device):
        whole = WholeStep(shape, device)
        took = seconds(whole.run, device, repetitions, whole.begin)
        whole.check()
        assert whole.step.last is not None
        return took, whole.step.last.phase_s


def backward_seconds(shape: Shape, device: torch.device, repetitions: int = 20) -> float:
    """Seconds of the backward pass of the layers: two products for each of the forward pass, in bf16, and attention's.

    Norms, activations and the output layer are not in it: MOO's share comes out too large rather than too small.
    """
    h, t = shape.hidden, shape.tokens
    new = partial(torch.randn, device=device, dtype=torch.bfloat16)
    shapes = [(h, h)] * 2 + [(h, shape.kv)] * 2 + [(h, shape.ffn)] * 2 + [(shape.ffn, h)]
    products = 0.0
    for into, outof in shapes:
        a, w, g = new(t, into), new(into, outof), new(t, outof)
        products += seconds(lambda a=a, w=w, g=g: (g @ w.T, a.T @ g), device, repetitions)
    q = new(1, shape.heads, t, h // shape.heads, requires_grad=True)
    attended = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    up = torch.randn_like(attended)
    products += seconds(lambda: torch.autograd.grad(attended, q, up, retain_graph=True), device, repetitions)
    return shape.layers * products
