"""``megatron-moo train`` under other launchers: srun's variables on two processes, torchrun, and what is refused."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT
from tests.end_to_end.test_train import losses_of

LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM", "TORCHELASTIC", "GROUP_")
TRAIN = ("-m", "megatron_moo.cli", "train", "tiny.yaml", "--train-iters", "2")


def clean() -> dict[str, str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHERS)}
    return env | {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "100",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def srun(folder: Path, *flags: list[str], timeout: float = 150) -> list[subprocess.CompletedProcess]:
    """One task for each list of flags, two "nodes" of one task each, with the variables of SLURM 22.05."""
    step = {
        "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LOCALID": "0",
        "SLURM_STEP_NODELIST": "localhost,moo2", "MASTER_PORT": free_port(),
    }  # fmt: skip
    tasks = []
    for rank, words in enumerate(flags):
        env = clean() | step | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}
        env["SLURMD_NODENAME"] = ("localhost", "moo2")[rank]
        tasks.append(
            subprocess.Popen(
                [sys.executable, *TRAIN, *words],
                cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
    done = []
    for task in tasks:
        out, err = task.communicate(timeout=timeout)
        done.append(subprocess.CompletedProcess(task.args, task.returncode, out, err))
    return done


@pytest.mark.timeout(300)
def test_srun_and_torchrun_are_the_same_run(three_languages: Path, tmp_path: Path) -> None:
    first, second = srun(tmp_path, ["--run-dir", "srun"], ["--run-dir", "srun"])
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    where = r"megatron-moo: rank (\d) of 2 on (\S+) \(local 0 of 1\), started by srun, CPU; local layer spec, torch's"
    assert re.findall(where, first.stdout) == [("0", "localhost")]
    assert re.findall(where, second.stdout) == [("1", "moo2")]
    assert "held-out" in first.stdout and "held-out" not in second.stdout, "one rank draws the table"
    assert (tmp_path / "srun" / "report.html").exists()
    losses = losses_of(tmp_path / "srun")
    assert sorted(losses) == [1, 2] and set(losses[1]) == {"el", "ko", "tr"}

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*torchrun, *TRAIN, "--run-dir", "torchrun"],
        cwd=tmp_path, env=clean(), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = re.findall(r"rank (\d) of 2 on \S+ \(local (\d) of 2\), started by torchrun, CPU", done.stdout)
    assert sorted(told) == [("0", "0"), ("1", "1")]
    assert done.stdout.count("megatron-moo: run folder torchrun") == 1
    assert losses_of(tmp_path / "torchrun") == losses, "bit for bit"

    again = srun(tmp_path, ["--run-dir", "srun"], ["--run-dir", "srun"])
    assert [task.returncode for task in again] == [0, 0]
    assert "all 2 steps are done" in again[0].stdout and losses_of(tmp_path / "srun") == losses


@pytest.mark.timeout(120)
def test_ranks_that_were_started_differently_leave_with_one_line(
    three_languages: Path, tmp_path: Path
) -> None:
    first, second = srun(tmp_path, ["--run-dir", "never"], ["--run-dir", "never", "--lr", "1e-4"])
    assert (first.returncode, second.returncode) == (2, 2)
    assert "rank 1 was started with lr '1e-4', rank 0 with 0.001" in first.stderr
    assert (first.stderr + second.stderr).count("\n") == 1, "rank 0 says it, the other leaves silently"
    assert not (tmp_path / "never").exists()


@pytest.mark.timeout(60)
def test_another_number_of_ranks_than_asked_for(three_languages: Path, tmp_path: Path) -> None:
    for task in srun(tmp_path, ["--nproc", "2"], ["--nproc", "2"]):
        assert task.returncode == 2
        expected = "megatron-moo: error: nproc: 2 ranks a machine were asked for, srun started 1 here"
        assert task.stderr.startswith(expected) and task.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="giving this machine another name needs root")
@pytest.mark.timeout(200)
def test_a_machine_whose_own_name_does_not_resolve(three_languages: Path, tmp_path: Path) -> None:
    """As in a container that no engine wrote /etc/hosts for: torchrun's ranks looked for it and waited for ever."""
    script = 'hostname "no-such-name-$$"; exec "$@"'
    done = subprocess.run(
        ["unshare", "--uts", "sh", "-c", script, "sh", sys.executable, *TRAIN, "--run-dir", "run"],
        cwd=tmp_path, env=clean(), capture_output=True, text=True, timeout=150, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"2 ranks on no-such-name-\d+, started from here, CPU; local layer spec", done.stdout)
    assert sorted(losses_of(tmp_path / "run")) == [1, 2]
