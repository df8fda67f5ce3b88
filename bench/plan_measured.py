"""`megatron-moo plan` beside runs on this CPU: memory of a rank and gradient bytes of a step, estimated and measured.

    python bench/plan_measured.py [--write]     --write puts the table into docs/cluster.md

Memory is the peak of a rank's resident set less what it held before the model was built (Python, torch, Megatron). The
allocator's gaps, gloo's buffers and code that is first used in a step are in the measured number and not in the plan.
Bytes are `bytes_sent` of metrics.jsonl, which counts what the exchange really gave to the network.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cluster.md"
MARKS = ("<!-- written by bench/plan_measured.py -->", "<!-- end -->")
RANKS = 2
# Name, and flags over examples/quickstart.yaml; the first is the quickstart itself.
RUNS: dict[str, list[str]] = {
    "quickstart": [],
    "27M parameters, 8 slots": ["--num-layers", "8", "--hidden-size", "512", "--ffn-hidden-size", "1536"],
    "27M parameters, 8 slots, bf16 rows": [
        "--num-layers", "8", "--hidden-size", "512", "--ffn-hidden-size", "1536", "--moo-rows", "bf16",
    ],
    "27M parameters, moo-recompute": [
        "--num-layers", "8", "--hidden-size", "512", "--ffn-hidden-size", "1536", "--moo-recompute",
    ],
    "27M parameters, tensor parallel": [
        "--num-layers", "8", "--hidden-size", "512", "--ffn-hidden-size", "1536", "--tensor-model-parallel-size", "2",
        "--moo-slots", "4",
    ],
    "long sequences": ["--seq-length", "1024", "--micro-batch-size", "2", "--moo-slots", "2"],
}  # fmt: skip
_MIB = 2**20


def resident() -> int:
    """Bytes of this process's resident set now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def be_a_rank(out: str) -> None:
    """Train with the flags in ``sys.argv`` and write down what that took."""
    from megatron_moo.training import main, platform

    platform.prepare()
    with platform.quiet():
        import megatron.training.training  # noqa: F401
    before = resident()
    main.main()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    Path(f"{out}.{os.environ['RANK']}").write_text(json.dumps({"before": before, "peak": peak}))


def measure(flags: list[str], folder: Path) -> dict[str, float]:
    """Memory and bytes of the fullest rank of a run of three steps."""
    from megatron_moo.training.plan import plan_run
    from megatron_moo.training.recipe import load_recipe, to_argv

    asked = [*flags, "--nproc", str(RANKS), "--train-iters", "3", "--run-dir", str(folder / "run")]
    plan = plan_run(load_recipe(ROOT / "examples" / "quickstart.yaml", asked), folder, lambda text: None)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    command += [__file__, "--rank", str(folder / "rank"), *to_argv(plan.flags)]
    # One arena: freed memory goes back to where the next tensor is taken from.
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    ranks = [json.loads(path.read_text()) for path in folder.glob("rank.*")]
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    sent = [line["bytes_sent"] for line in lines if "event" not in line]
    return {"memory": max(rank["peak"] - rank["before"] for rank in ranks), "sent": sent[-1]}


def estimated(flags: list[str]) -> dict[str, float]:
    """The same by `megatron-moo plan`."""
    asked = [*flags, "--train-iters", "3", "--transformer-impl", "local"]
    command = [sys.executable, "-m", "megatron_moo.cli", "plan", str(ROOT / "examples" / "quickstart.yaml")]
    command += ["--gpus", str(RANKS), "--gpus-per-node", str(RANKS), "--json", *asked]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    return {
        "memory": told["bytes"]["total"],
        "sent": told["wire_bytes"]["inside"] + told["wire_bytes"]["between"],
    }


def table(names: list[str]) -> list[str]:
    lines = [
        "| run, two ranks | memory, plan (MiB) | measured (MiB) | measured/plan | bytes a step, plan | measured |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            found, plan = measure(RUNS[name], Path(folder)), estimated(RUNS[name])
        memory = f"{plan['memory'] / _MIB:.0f} | {found['memory'] / _MIB:.0f} | {found['memory'] / plan['memory']:.2f}"
        lines.append(f"| {name} | {memory} | {plan['sent']:,.0f} | {found['sent']:,.0f} |")
        print(lines[-1], flush=True)
    return lines


def write(lines: list[str]) -> None:
    """Put the table between the marks of docs/cluster.md."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(MARKS[0])
    PAGE.write_text(
        "\n".join([head + MARKS[0], "", *lines, "", MARKS[1]]) + rest.split(MARKS[1])[1], encoding="utf-8"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        out = sys.argv[2]
        del sys.argv[1:3]
        be_a_rank(out)
        sys.exit(0)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/cluster.md")
    parser.add_argument("names", nargs="*", default=list(RUNS), help="runs to make")
    options = parser.parse_args()
    made = table(options.names)
    if options.write:
        write(made)
