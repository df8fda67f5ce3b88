"""Who started a process, read from the environment as the launchers leave it."""

from __future__ import annotations

import socket

import pytest

from megatron_moo.errors import MooError
from megatron_moo.training import where
from megatron_moo.training.where import (
    Where,
    check_where,
    export,
    find_where,
    first_host,
    notes,
    tasks_per_node,
)

MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
TORCHRUN = {
    **MEETING, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_RANK": "1",
    "GROUP_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "x",
}  # fmt: skip
# A task of `srun --nodes=3 --ntasks=7`, as SLURM 22.05 sets it.
SRUN = {
    "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0", "SLURM_STEPID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_NUM_NODES": "3", "SLURM_LOCALID": "2", "SLURM_NODEID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1", "SLURM_STEP_NODELIST": "localhost,moo[07-08]", "SLURMD_NODENAME": "moo07",
    "SLURM_JOB_NUM_NODES": "3",
}  # fmt: skip
AGENT = {**SRUN, "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
ALONE = {**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
BATCH = {"SLURM_JOB_ID": "41", "SLURM_PROCID": "0", "SLURM_NTASKS": "16", "SLURM_JOB_NUM_NODES": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (BATCH, None),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, None),
        (TORCHRUN, Where("torchrun", socket.gethostname(), 5, 8, 1, 4)),
        (SRUN, Where("srun", "moo07", 5, 7, 2, 3)),
        ({**AGENT, **TORCHRUN}, Where("torchrun in srun", "moo07", 5, 8, 1, 4)),
        # enroot's hook for PyTorch containers repeats srun's numbers.
        ({**SRUN, **MEETING, "RANK": "5", "WORLD_SIZE": "7", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "3"},
         Where("srun", "moo07", 5, 7, 2, 3)),
        ({**MEETING, "RANK": "1", "WORLD_SIZE": "2"}, Where("RANK", socket.gethostname(), 1, 2, 0, 1)),
        # One srun a node, each of one task, with torchrun --nnodes=2 in it; and the same with another launcher.
        ({**ALONE, **TORCHRUN}, Where("torchrun in srun", "moo07", 5, 8, 1, 4)),
        ({**ALONE, **MEETING, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
         Where("RANK", "moo07", 5, 8, 1, 4)),
        # A step of two of the run's four nodes.
        ({**AGENT, **TORCHRUN, "GROUP_WORLD_SIZE": "4", "WORLD_SIZE": "16"},
         Where("torchrun in srun", "moo07", 5, 16, 1, 4)),
    ],
)  # fmt: skip
def test_where_a_process_is(environ: dict[str, str], expected: Where | None) -> None:
    assert find_where(environ) == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"RANK": "1"}, "RANK is set and WORLD_SIZE is not"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "RANK is set and MASTER_ADDR is not"),
        ({**TORCHRUN, "RANK": "8"}, "RANK is 8 and WORLD_SIZE 8"),
        ({**TORCHRUN, "RANK": "one"}, "RANK is 'one', not a number"),
        # torchrun --standalone on each of two nodes: two runs of four ranks in one folder.
        ({**AGENT, **TORCHRUN, "RANK": "1", "WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"},
         "srun started 2 tasks and torchrun made a run of 1: they would be 2 runs in one folder; give torchrun "
         "--nnodes=2"),
        ({**SRUN, **MEETING, "RANK": "0", "WORLD_SIZE": "1"},
         "srun says task 5 of 7, RANK and WORLD_SIZE say rank 0 of 1"),
        ({**TORCHRUN, "MASTER_PORT": "abc"}, "MASTER_PORT is 'abc', a port from 1 to 65535 was expected; set it to"),
        ({**TORCHRUN, "MASTER_PORT": "99999"}, "MASTER_PORT is '99999', a port"),
        ({**TORCHRUN, "MASTER_PORT": "0"}, "MASTER_PORT is '0', a port"),
        ({**SRUN, "MASTER_PORT": "-1"}, "MASTER_PORT is '-1', a port"),
        ({**TORCHRUN, "LOCAL_RANK": "5"}, "LOCAL_RANK is 5 and LOCAL_WORLD_SIZE 4"),
        ({**TORCHRUN, "LOCAL_RANK": "\u00b2"}, "LOCAL_RANK is '\u00b2', not a number"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "9"}, "LOCAL_WORLD_SIZE is 9 and WORLD_SIZE 8"),
        ({**SRUN, "SLURM_LOCALID": "3"}, "SLURM_PROCID is 5 of 7 and SLURM_LOCALID 3 of 3"),
        ({**SRUN, "SLURM_PROCID": "7"}, "SLURM_PROCID is 7 of 7"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "3(x3)"}, "SLURM_STEP_TASKS_PER_NODE is '3"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_STEP_TASKS_PER_NODE is 'many'"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_one_error(environ: dict[str, str], message: str) -> None:
    with pytest.raises(MooError) as caught:
        find_where(environ)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_ranks_a_machine_are_held_against_what_is_asked_and_its_gpus() -> None:
    found = Where("torchrun", "node", 5, 8, 1, 4)
    for nproc, gpus in ((None, 0), ("4", 4), (4, 1), (None, 8)):
        check_where(found, nproc, gpus)
    with pytest.raises(MooError, match="nproc: 8 ranks a machine were asked for, torchrun started 4 here"):
        check_where(found, "8", 0)
    with pytest.raises(MooError, match="4 ranks on node, which shows 2 GPUs"):
        check_where(found, None, 2)
    assert notes(found, {}, 4) == [] == notes(found, {}, 1) == notes(None, {}, 8)
    assert notes(found, {}, 8) == ["node shows 8 GPUs and has 4 of the ranks; the others idle"]
    assert "this job has 2 nodes" in notes(None, BATCH, 0)[0]


def test_a_task_of_srun_is_told_what_torch_reads() -> None:
    environ = dict(SRUN)
    export(find_where(environ), environ, gpus=3)
    assert environ["MASTER_ADDR"] == "localhost" and 15000 <= int(environ["MASTER_PORT"]) < 30000
    told = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    assert [environ[name] for name in told] == ["5", "7", "2", "3"]
    other = {**SRUN, "SLURM_STEP_ID": "1"}
    export(find_where(other), other, gpus=1)
    assert other["LOCAL_RANK"] == "0", "--gpus-per-task=1: every task's GPU is its first"
    assert other["MASTER_PORT"] != environ["MASTER_PORT"]
    given = {**SRUN, **MEETING}
    export(find_where(given), given, gpus=0)
    assert given["MASTER_ADDR"] == "10.0.0.1" and given["MASTER_PORT"] == "29500"


def test_a_first_node_without_a_name_has_slurms_address(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {**SRUN, "SLURM_STEP_NODELIST": "no-such-node-[3-4]"}
    monkeypatch.setattr(where, "_slurm_address", {"no-such-node-3": "10.1.2.3"}.get)
    export(find_where(environ), environ, gpus=0)
    assert environ["MASTER_ADDR"] == "10.1.2.3"
    monkeypatch.setattr(where, "_slurm_address", lambda host: None)
    environ.pop("MASTER_ADDR")
    with pytest.raises(
        MooError, match="MASTER_ADDR: the name of the first node, no-such-node-3, does not resolve"
    ):
        export(Where("srun", "n", 0, 7, 0, 3), environ, gpus=0)


def test_node_lists_as_slurm_writes_them() -> None:
    lists = {
        "gpu7": "gpu7",
        "gpu[007-010,12],login": "gpu007",
        "a1,a2": "a1",
        "r[1-2]n3": "r1n3",
        "c[5,9]": "c5",
    }
    assert {text: first_host(text) for text in lists} == lists
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1] and tasks_per_node("8") == [8]
