"""The shipped sbatch files on a real SLURM of two nodes on this machine (slow; tests/slurm/install.sh installs it)."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm import cluster, page, story

pytestmark = [pytest.mark.slow]
WHY = cluster.missing()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets are in it."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="slurm.") as found:
        yield Path(found)


@pytest.mark.skipif(WHY is not None, reason=str(WHY))
@pytest.mark.timeout(1800)
def test_a_run_that_is_pre_empted_three_times_has_the_losses_of_one_that_is_not(folder: Path) -> None:
    told = story.play(folder)
    assert sorted(told.alone) == list(range(1, 121)) == sorted(told.preempted)
    assert page.difference(told) == 0.0, "bit for bit"
    assert told.alone[120]["el"] < told.alone[1]["el"] - 1.0, "it learns"
    saved = [step for _, step in told.stops]
    assert told.restarts == 3 and saved == sorted(set(saved)) and saved[0] > 0 and saved[-1] < 120
    assert told.left == [], "no process outlives its job"
    for text in ("after SIGUSR1; step", "after SIGTERM; step", "after pre-emption; step", "requeueing"):
        assert text in told.log
    assert set(re.findall(r"on (moo\d) \(local [01] of 2\), started by torchrun in srun", told.log)) == {
        "moo1",
        "moo2",
    }


@pytest.mark.skipif(WHY is not None, reason=str(WHY))
@pytest.mark.timeout(900)
def test_srun_alone_starts_the_ranks_and_a_run_without_progress_is_not_requeued(folder: Path) -> None:
    recipe = story.write_recipe(folder)
    with cluster.Cluster(folder / "slurm") as slurm:
        # Four tasks are four ranks, without torchrun; MASTER_ADDR is SLURM's address of the first node.
        train = f"{sys.executable} -m megatron_moo.cli train {recipe} --run-dir {folder}/srun --train-iters 2"
        env = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        wrap = ("--nodes=2", "--ntasks-per-node=2", f"--output={folder}/srun.log", "--wrap", f"srun {train}")
        job = slurm.submit(*wrap, env=env, cwd=story.ROOT)
        assert slurm.wait(job, ("COMPLETED", "FAILED"), 300) == "COMPLETED", (folder / "srun.log").read_text()
        log = (folder / "srun.log").read_text(encoding="utf-8")
        ranks = re.findall(r"rank (\d) of 4 on (moo\d) \(local (\d) of 2\), started by srun", log)
        assert sorted(ranks) == [
            ("0", "moo1", "0"),
            ("1", "moo1", "1"),
            ("2", "moo2", "0"),
            ("3", "moo2", "1"),
        ]
        assert sorted(story.losses(folder / "srun")) == [1, 2]

        # A signal before the first step: nothing is saved, so that another start would do the same again.
        run = folder / "stuck"
        job = story.submit(slurm, recipe, run)
        slurm.wait(job, ("RUNNING",), 60)
        log_file = Path(f"{run}.log")
        cluster.wait_for(
            lambda: log_file.exists() and "starting 2 ranks" in log_file.read_text(encoding="utf-8"),
            "no ranks",
            60,
        )
        slurm.run("scancel", "--batch", "--signal=USR1", job)
        assert slurm.wait(job, ("FAILED", "PENDING", "COMPLETED"), 300) == "FAILED"
        assert slurm.job(job)["ExitCode"] == "3:0" and slurm.job(job)["Restarts"] == "0"
        assert "no step was saved since the last start (still 0)" in Path(f"{run}.log").read_text(
            encoding="utf-8"
        )


@pytest.mark.skipif(WHY is not None, reason=str(WHY))
@pytest.mark.timeout(600)
def test_the_exchange_benchmark(folder: Path) -> None:
    with cluster.Cluster(folder / "slurm") as slurm:
        small = ("--backend", "gloo", "--values", "40000", "--repetitions", "2", "--ranks-per-node", "2")
        env = {
            "MEGATRON_MOO": str(story.ROOT),
            "PYTHON": sys.executable,
            "NPROC": "2",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        script = str(story.ROOT / "examples" / "slurm" / "exchange_benchmark.sbatch")
        options = (*story.HERE, f"--output={folder}/exchange.log", script, *small)
        job = slurm.submit(*options, env=env, cwd=folder)
        state = slurm.wait(job, ("COMPLETED", "FAILED"), 300)
        log = (folder / "exchange.log").read_text(encoding="utf-8")
        assert state == "COMPLETED", log
        assert "4 ranks on 2 nodes, gloo" in log and "MOO, hierarchical" in log
