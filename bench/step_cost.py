"""Cost of a training step: plain Megatron, its fp32-accumulating reduce-scatter, and Bucket-Level MOO.

    python bench/step_cost.py --dp 2 --objectives 2 --pairs 30

Variants take turns step by step in the same processes, on the same model and batches, so that a slow moment of a
shared machine hits all of them. Printed are medians of the ratios with a 95 % interval (order statistics), and peak
memory of each variant in processes of its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.distributed.case import Case  # noqa: E402

MODEL = (
    "--num-layers", "8", "--hidden-size", "512", "--ffn-hidden-size", "1408", "--num-attention-heads", "8",
    "--seq-length", "128", "--max-position-embeddings", "128", "--overlap-grad-reduce", "--ddp-bucket-size", "3000000",
    "--untie-embeddings-and-output-weights", "--log-interval", "1000000",
)  # fmt: skip
VARIANTS = ("plain", "fp32acc", "mean", "mgda", "cagrad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dp", type=int, default=2)
    parser.add_argument("--objectives", type=int, default=2)
    parser.add_argument("--slots", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--block", default="layer")
    parser.add_argument("--memory", action="store_true", help="also run every variant alone for its peak memory")
    args = parser.parse_args()
    if "RANK" in os.environ:
        rank_main(args)
        return
    times = launch(args, args.variants, args.pairs)
    table(args, times)


def launch(args: argparse.Namespace, variants: list[str], pairs: int) -> dict[str, Any]:
    """Start the ranks; returns rank 0's measurements."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.dp}",
        os.path.abspath(__file__), "--dp", str(args.dp), "--objectives", str(args.objectives),
        "--slots", str(args.slots), "--pairs", str(pairs), "--block", args.block, "--variants", *variants,
    ]  # fmt: skip
    env = dict(os.environ, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000)
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise SystemExit(done.stderr[-3000:])


def table(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print ratios to plain Megatron and to its fp32-accumulating exchange."""
    times = result["times"]
    print(f"DP {args.dp}, K {args.objectives}, slots {args.slots}, block {args.block}: {result['parameters']:,} parameters, "
          f"{args.pairs} interleaved steps")  # fmt: skip
    print(f"{'variant':10} {'ms':>8}   {'to plain':>22}   {'to fp32acc':>22}   exchange gramian solve combine (ms)")
    for name in args.variants:
        ms = 1e3 * statistics.median(times[name])
        ratios = [ratio(times[name], times[base]) if base in times else "" for base in ("plain", "fp32acc")]
        phase = result["phase"].get(name)
        parts = " ".join(f"{1e3 * v:7.2f}" for v in phase.values()) if phase else ""
        print(f"{name:10} {ms:8.1f}   {ratios[0]:>22}   {ratios[1]:>22}   {parts}")
    if args.memory:
        for name in args.variants:
            alone = launch(args, [name], 3)
            print(f"{name:10} peak memory {alone['peak_mb']:8.1f} MB per rank")


def ratio(mine: list[float], base: list[float]) -> str:
    """Median of the paired ratios with a 95 % interval from order statistics."""
    pairs = sorted(a / b for a, b in zip(mine, base, strict=True))
    n = len(pairs)
    reach = 1.96 * sqrt(n) / 2
    low, high = pairs[max(0, int(n / 2 - reach))], pairs[min(n - 1, int(n / 2 + reach))]
    return f"{statistics.median(pairs):.3f} [{low:.3f}, {high:.3f}]"


def rank_main(options: argparse.Namespace) -> None:
    """One rank: build every variant, then let them take turns."""
    from megatron_moo.training import platform

    platform.prepare()
    import torch.distributed as dist

    from tests.distributed.ranks import start

    case = Case(
        "bench", dp=options.dp, objectives=options.objectives, slots=options.slots, ragged=False, seq=128,
        block=options.block, flags=MODEL,
    )  # fmt: skip
    stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
    args = start(case)
    variants = {name: Variant(name, case, args) for name in options.variants}
    times: dict[str, list[float]] = {name: [] for name in variants}
    phases: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for turn in range(options.pairs + 3):
        order = list(variants) if turn % 2 else list(reversed(variants))
        for name in order:
            dist.barrier()
            started = time.perf_counter()
            variants[name].train_step(turn)
            dist.barrier()
            if turn >= 3:
                times[name].append(time.perf_counter() - started)
                phases[name].append(variants[name].phase())
    sys.stdout = stdout
    if dist.get_rank() == 0:
        phase = {
            name: {key: statistics.median(p[key] for p in seen) for key in seen[0]}
            for name, seen in phases.items()
            if seen[0]
        }
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        result = {"times": times, "phase": phase, "parameters": variants[options.variants[0]].size, "peak_mb": peak}
        print("RESULT " + json.dumps(result), flush=True)


class Variant:
    """One way to reduce gradients, with a model and an optimizer of its own."""

    def __init__(self, name: str, case: Case, args: Any) -> None:
        import dataclasses

        import torch.distributed as dist
        from megatron.core import parallel_state as ps
        from megatron.core.distributed import finalize_model_grads
        from megatron.core.utils import get_model_config
        from megatron.training import training

        from megatron_moo.buckets.lanes import find_lanes
        from megatron_moo.buckets.seam import Seam, peer_groups
        from megatron_moo.training.forward import forward_step
        from tests.distributed.ranks import batches_of_rank, build, make_step

        self.args = args
        self.buffer = importlib.import_module("megatron.core.distributed.param_and_grad_buffer")
        self.step = self.seam = None
        if name in ("plain", "fp32acc"):
            self.model, self.optimizer, self.scheduler = build(case, args)
            stock = self.buffer.reduce_scatter_with_fp32_accumulation
            self.reduce = stock if name == "fp32acc" else dist.reduce_scatter_tensor
            self.schedule = training.get_forward_backward_func()
        else:
            self.step = make_step(dataclasses.replace(case, method=name))
            self.seam = Seam(self.step, lambda: args.curr_iteration)
            self.model, self.optimizer, self.scheduler = build(case, args)
            self.reduce = self.seam.exchange
            self.schedule = training.get_forward_backward_func()
            self.seam.remove()
        if name == "plain":
            for chunk in self.model:
                for group in chunk.bucket_groups:
                    group.ddp_config = dataclasses.replace(
                        group.ddp_config, reduce_scatter_with_fp32_accumulation=False
                    )
                    group.previous_grad_reduce_bucket_group = None
        lanes = find_lanes(peer_groups(ps), ps.get_data_parallel_rank())
        self.data = batches_of_rank(case, lanes.lane, lanes.peer)
        self.config = get_model_config(self.model[0])
        self.config.grad_scale_func, self.config.timers = self.optimizer.scale_loss, None
        self.config.no_sync_func = self.model[0].no_sync
        self.config.finalize_model_grads_func = finalize_model_grads
        self.forward = partial(forward_step, record=lambda _batch: lambda *_: None)
        self.size = sum(p.numel() for p in self.model[0].parameters())

    def train_step(self, turn: int) -> None:
        from megatron.training import training

        self.args.curr_iteration = turn
        self.buffer.dist_reduce_scatter_func = self.reduce
        training.train_step(
            lambda it, m: self.forward(it, m), self.data, self.model, self.optimizer, self.scheduler, self.config,
            self.schedule, turn,
        )  # fmt: skip

    def phase(self) -> dict[str, float]:
        return dict(self.step.last.phase_s) if self.step is not None and self.step.last is not None else {}


if __name__ == "__main__":
    main()
