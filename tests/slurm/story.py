"""The shipped sbatch file on a real SLURM: one run left alone, the same run pre-empted three times.

``python -m tests.slurm.story`` writes docs/slurm-run.md and docs/images/slurm.png from what happened.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.slurm.cluster import Cluster

ROOT = Path(__file__).resolve().parents[2]
TAGS = ("el", "ko", "tr", "vi")
RECIPE = """\
languages: languages.yaml
num-layers: 2
hidden-size: 64
ffn-hidden-size: 128
num-attention-heads: 2
seq-length: 64
micro-batch-size: 2
position-embedding-type: rope
normalization: RMSNorm
swiglu: true
disable-bias-linear: true
attention-dropout: 0.0
hidden-dropout: 0.0
lr: 2.0e-3
lr-decay-style: cosine
train-iters: 120
eval-interval: 1000
save-interval: 1000
"""
# What the sbatch file asks of a cluster of 8-GPU nodes, for two small nodes without GPUs.
HERE = ("--nodes=2", "--gpus-per-node=0", "--cpus-per-task=2", "--time=60")
START_S = 240.0
Losses = dict[int, dict[str, float]]


@dataclass
class Story:
    """What happened.

    Attributes:
        alone, preempted: loss per step and language of the two runs.
        stops: how the second was stopped, and the step that was saved then.
        restarts: SLURM's own count.
        log: of the second job.
        left: processes of the runs that were still there at the end.
        version: SLURM's.
    """

    alone: Losses = field(default_factory=dict)
    preempted: Losses = field(default_factory=dict)
    stops: list[tuple[str, int]] = field(default_factory=list)
    restarts: int = 0
    log: str = ""
    left: list[str] = field(default_factory=list)
    version: str = ""


def losses(run: Path) -> Losses:
    """Loss per step; a step that was trained twice counts as it was trained last."""
    if not (run / "metrics.jsonl").exists():
        return {}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return {line["step"]: line["loss"] for line in lines if "event" not in line}


def write_recipe(folder: Path) -> Path:
    udhr = ROOT / "examples" / "udhr"
    lines = ["tokenizer: byte", "languages:"]
    lines += [
        f"  {tag}: {{train: [{udhr}/train/{tag}.txt], valid: [{udhr}/valid/{tag}.txt]}}" for tag in TAGS
    ]
    (folder / "languages.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return folder / "recipe.yaml"


def submit(
    cluster: Cluster, recipe: Path, run: Path, *options: str, script: str = "many_nodes.sbatch"
) -> str:
    """The shipped script with two ranks on each of two nodes; its log is ``RUN.log``."""
    env = {
        "MEGATRON_MOO": str(ROOT), "RUN_DIR": str(run), "NPROC": "2", "PYTHON": sys.executable,
        "MIN_FREE_GB": "1", "MIN_SHM_GB": "0", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    path = str(ROOT / "examples" / "slurm" / script)
    return cluster.submit(
        *HERE, f"--output={run}.log", *options, path, str(recipe), env=env, cwd=recipe.parent
    )


def play(folder: Path) -> Story:
    """Run both jobs; ``folder`` keeps everything."""
    story = Story()
    recipe = write_recipe(folder)
    with Cluster(folder / "slurm") as cluster:
        story.version = cluster.run("sinfo", "--version").strip().replace("slurm-wlm", "SLURM")
        first = submit(cluster, recipe, folder / "alone")
        _finish(cluster, first, folder / "alone")
        story.alone = losses(folder / "alone")

        run = folder / "preempted"
        job = submit(cluster, recipe, run)
        stops = (
            ("SIGUSR1 as --signal=B:USR1@600 sends it", ("scancel", "--batch", "--signal=USR1", job)),
            ("scontrol requeue", ("scontrol", "requeue", job)),
            ("a job of a partition with higher priority", ()),
        )
        for number, (how, command) in enumerate(stops, 1):
            _await_step(run, last=story.stops[-1][1] if story.stops else 0)
            if command:
                cluster.run(*command)
            else:
                more = ("--partition=urgent", "--nodes=2", "--exclusive", f"--output={folder}/urgent.log")
                urgent = cluster.submit(*more, "--wrap", "sleep 1")
                cluster.wait(urgent, ("COMPLETED",), START_S)
            _await_start(cluster, job, number)
            story.stops.append((how, saved(run)))
        _finish(cluster, job, run)
        story.preempted = losses(run)
        story.restarts = int(cluster.job(job)["Restarts"])
        story.log = Path(f"{run}.log").read_text(encoding="utf-8")
        story.left = _left(folder)
    return story


def saved(run: Path) -> int:
    """Last step of a complete checkpoint."""
    tracker = run / "checkpoints" / "latest_checkpointed_iteration.txt"
    return int(tracker.read_text() or 0) if tracker.exists() else 0


def processes(word: str) -> list[str]:
    """Command lines of this machine's processes that hold ``word``, this one apart."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if word in line and path.parent.name != str(os.getpid()):
            found.append(line)
    return found


def _left(folder: Path) -> list[str]:
    """Processes of both runs that do not end within ten seconds of their jobs."""
    for _ in range(100):
        if not (found := [line for name in ("alone", "preempted") for line in processes(str(folder / name))]):
            break
        time.sleep(0.1)
    return found


def _await_step(run: Path, last: int) -> None:
    """Until a few more steps than those saved are trained."""
    deadline = time.monotonic() + START_S
    while max(losses(run), default=0) < last + 25:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no step after {last} was trained; the log ends with:\n{_tail(run)}")
        time.sleep(0.1)


def _await_start(cluster: Cluster, job: str, number: int) -> None:
    deadline = time.monotonic() + START_S
    while True:
        shown = cluster.job(job)
        if shown["JobState"] == "RUNNING" and int(shown["Restarts"]) >= number:
            return
        if shown["JobState"] in ("COMPLETED", "FAILED", "CANCELLED") or time.monotonic() > deadline:
            raise RuntimeError(
                f"job {job} is {shown['JobState']} after stop {number}, {shown['Restarts']} restarts"
            )
        time.sleep(0.2)


def _finish(cluster: Cluster, job: str, run: Path) -> None:
    state = cluster.wait(job, ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"), 600.0)
    if state != "COMPLETED":
        raise RuntimeError(f"job {job} ended {state}:\n{_tail(run)}")


def _tail(run: Path) -> str:
    log = Path(f"{run}.log")
    return log.read_text(encoding="utf-8")[-3000:] if log.exists() else "(no log)"


def told(log: str) -> list[str]:
    """Lines of the log that the scripts and ``train`` say, without names of this machine."""
    keep = re.compile(r"^(\S+ job \d+ start \d+: |node check: |megatron-moo: |\s*slurmstepd|srun: )")
    return [line for line in log.splitlines() if keep.match(line)]


if __name__ == "__main__":
    from tests.slurm.page import write_page

    with tempfile.TemporaryDirectory(dir="/tmp") as scratch:
        write_page(play(Path(scratch)), scratch)
