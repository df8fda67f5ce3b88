"""The exchange of one gradient bucket between real ranks: Megatron's reduce-scatters, ours flat and in two stages.

    python bench/exchange.py                                              4 gloo ranks on this machine
    torchrun --nnodes N --nproc-per-node 8 … bench/exchange.py --backend nccl --values 64000000
    examples/slurm/exchange_benchmark.sbatch                              the same on several nodes

Every repetition times all four one after the other, so that the ratios compare the same minute. Bytes between nodes are
counted from where ranks are (their host names, or --ranks-per-node).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.buckets.blocks import BucketPlan, Kind, Segment
from megatron_moo.buckets.config import MooConfig
from megatron_moo.buckets.exchange import Exchange
from megatron_moo.buckets.hierarchy import find_hierarchies, nodes_of_ranks
from megatron_moo.buckets.step import MooStep
from megatron_moo.moo import make_method

WARM_UP = 3


class Adjacent:
    """Equal objectives side by side, as ``LaneSchedule`` puts them."""

    def __init__(self, lanes: int, objectives: int) -> None:
        self._row = sorted(lane % objectives for lane in range(lanes))

    def assignment(self, step: int) -> list[list[int]]:
        return [self._row]


class Ours:
    """One bucket through ``MooStep``: exchange, parking, Gramian, solve and combination."""

    def __init__(self, grad: torch.Tensor, options: argparse.Namespace, exchange: str) -> None:
        rank, world = dist.get_rank(), dist.get_world_size()
        config = MooConfig(
            "cagrad", wire=options.wire, exchange=exchange, ranks_per_node=options.ranks_per_node
        )
        names = [f"objective{k}" for k in range(options.objectives)]
        self.step = MooStep(config, make_method("cagrad"), names, Adjacent(world, options.objectives))
        shard = grad.numel() // world
        self.plan = BucketPlan(
            "bucket",
            grad,
            rank,
            tuple(range(world)),
            (Segment(0, shard, 0, Kind.OWN),),
            ranks=tuple(range(world)),
        )
        find_hierarchies(
            [self.plan], exchange, "fp32", self.step.schedule, nodes_of_ranks(options.ranks_per_node), 1
        )
        self.step.place([self.plan], ["block"], "", rank, counts_tokens=True)
        self.exchange = Exchange(self.step, dist.reduce_scatter_tensor, dist.reduce_scatter_tensor)
        self.exchange.register([self.plan])
        self._number = 1

    def __call__(self) -> None:
        step, plan = self.step, self.plan
        self._number += 1 if (self._number + 1) % 100 else 2  # every 100th step goes flat
        self.exchange.reset()
        step.begin(self._number)
        step.begin_pass(step.passes[0])
        self.exchange(plan.own, plan.grad, group=dist.group.WORLD, async_op=True).wait()
        step.count(1.0)
        step.end_pass()


def contestants(grad: torch.Tensor, options: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    from megatron.core.distributed.reduce_scatter_with_fp32_accumulation import (
        reduce_scatter_with_fp32_accumulation,
    )

    own = torch.empty(grad.numel() // dist.get_world_size(), device=grad.device)
    found: dict[str, Callable[[], None]] = {
        "reduce-scatter": lambda: dist.reduce_scatter_tensor(own, grad) and None,
        "Megatron's fp32-accumulating": lambda: (
            reduce_scatter_with_fp32_accumulation(
                own, grad, op=dist.ReduceOp.SUM, group=dist.group.WORLD, async_op=False
            )
            and None
        ),
        "MOO, flat": Ours(grad, options, "flat"),
    }
    if dist.get_world_size() > options.objectives and dist.get_world_size() % options.objectives == 0:
        found["MOO, hierarchical"] = Ours(grad, options, "hierarchical")
    return found


def timed(run: Callable[[], None], grad: torch.Tensor) -> float:
    """Seconds of the slowest rank."""
    dist.barrier()
    started = time.perf_counter()
    run()
    if grad.is_cuda:
        torch.cuda.synchronize()
    took = torch.tensor([time.perf_counter() - started], device=grad.device)
    dist.all_reduce(took, op=dist.ReduceOp.MAX)
    return float(took)


def ring_between(nodes: Sequence[int]) -> float:
    """What a ring reduce-scatter sends between nodes, in buckets: once around, wherever neighbours are apart."""
    members = len(nodes)
    apart = sum(nodes[rank] != nodes[(rank + 1) % members] for rank in range(members))
    return apart * (members - 1) / members


def measure(options: argparse.Namespace) -> list[str]:
    """The table, on rank 0; a collective call."""
    device = torch.device("cuda" if options.backend == "nccl" else "cpu")
    world = dist.get_world_size()
    values = options.values // (world * 128) * world * 128
    grad = torch.randn(values, device=device, generator=torch.Generator(device).manual_seed(dist.get_rank()))
    runs = contestants(grad, options)
    source = grad.clone()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(WARM_UP + options.repetitions):
        for name, run in runs.items():
            grad.copy_(source)
            took = timed(run, grad)
            if repetition >= WARM_UP:
                seconds[name].append(took)
    nodes = nodes_of_ranks(options.ranks_per_node)
    lines = [
        f"{world} ranks on {len(set(nodes))} nodes, {options.backend}, {values / 1e6:.1f}M fp32 values, "
        f"K = {options.objectives}, wire {options.wire}, {options.repetitions} repetitions",
        "",
        "| exchange | ms, median | of reduce-scatter [quartiles] | MB sent per rank | MB between nodes, all ranks |",
        "| --- | --- | --- | --- | --- |",
    ]
    base = seconds["reduce-scatter"]
    for name, run in runs.items():
        ratios = [a / b for a, b in zip(seconds[name], base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else [ratios[0]] * 3
        sent, between = 4 * values * (world - 1) / world, 4 * values * ring_between(nodes)
        if isinstance(run, Ours):
            told = torch.tensor([run.exchange.bytes_sent, run.exchange.bytes_between_nodes], device=device)
            dist.all_reduce(told)
            sent, between = float(told[0]) / world, float(told[1])
        counted = "" if isinstance(run, Ours) else " (a ring's)"
        lines.append(
            f"| {name} | {statistics.median(seconds[name]) * 1e3:.2f} | {middle:.2f} [{low:.2f}, {high:.2f}] | "
            f"{sent / 1e6:.1f}{counted} | {between / 1e6:.1f}{counted} |"
        )
    return lines


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo")
    parser.add_argument("--values", type=int, default=4_000_000, help="fp32 values of the bucket")
    parser.add_argument("--objectives", type=int, default=2, help="K")
    parser.add_argument("--wire", choices=["fp32", "bf16", "fp8"], default="fp32")
    parser.add_argument("--ranks-per-node", type=int, default=None, help="default: by host names")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--nproc", type=int, default=4, help="ranks to start where torchrun did not")
    return parser.parse_args(argv)


def main() -> int:
    options = parse(sys.argv[1:])
    if "RANK" not in os.environ:
        if "--ranks-per-node" not in sys.argv:
            sys.argv += ["--ranks-per-node", str(max(1, options.nproc // 2))]
        starter = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(options.nproc),
        ]
        return subprocess.run(
            [*starter, *sys.argv], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    if options.backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        from megatron_moo.training import platform

        platform.prepare()
    dist.init_process_group(options.backend)
    lines: Any = measure(options)
    if dist.get_rank() == 0:
        sys.stdout.write("\n".join(lines) + "\n")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
