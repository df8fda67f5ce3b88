"""Who started this process: torchrun, srun, another launcher, or nobody; and which rank it is.

Everything is read from the environment, before anything of Megatron is imported. What contradicts itself (two
launchers that count differently, a variable that is missing) is refused here: later it would be a run that hangs, or
several runs that write into one folder.
"""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from megatron_moo.errors import MooError

_RANK_NAMES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_TOOL_TIMEOUT_S = 10.0
# Below the ports that systems hand out by themselves (32768 and up).
_FIRST_PORT, _PORTS = 15000, 15000


@dataclass(frozen=True)
class Where:
    """Place of a rank.

    Attributes:
        launcher: ``torchrun``, ``torchrun in srun``, ``srun``, or ``RANK`` for another one.
        node: name of this machine.
        rank, world: of the run.
        local_rank, local_world: on this machine.
    """

    launcher: str
    node: str
    rank: int
    world: int
    local_rank: int
    local_world: int

    def line(self, device: str) -> str:
        """What a rank says of itself at its start."""
        return (
            f"rank {self.rank} of {self.world} on {self.node} (local {self.local_rank} of {self.local_world}), "
            f"started by {self.launcher}, {device}"
        )


def find_where(environ: Mapping[str, str]) -> Where | None:
    """The place that the environment gives this process; None where this process has to start the ranks.

    Raises:
        MooError: naming the variables that contradict each other.
    """
    if any(name in environ for name in ("RANK", "WORLD_SIZE")):
        return _from_ranks(environ)
    return _from_srun(environ) if _srun_tasks(environ) > 1 else None


def check_where(found: Where, nproc: str | None, gpus: int) -> None:
    """Hold the launcher against what recipe or command line ask (``nproc``, ranks a machine) and the GPUs in sight.

    Raises:
        MooError: for more ranks than GPUs, or another number than asked for.
    """
    if nproc is not None and str(nproc) != str(found.local_world):
        raise MooError(
            f"{nproc} ranks a machine were asked for, {found.launcher} started {found.local_world} here",
            "nproc",
            "leave it out: the launcher decides",
        )
    if gpus > 1 and found.local_world > gpus:
        raise MooError(
            f"{found.local_world} ranks on {found.node}, which shows {gpus} GPUs",
            "launcher",
            "one rank needs one GPU: start as many ranks a node as it has GPUs",
        )


def notes(found: Where | None, environ: Mapping[str, str], gpus: int) -> list[str]:
    """What is allowed and rarely meant."""
    nodes = _number(environ, "SLURM_JOB_NUM_NODES", 1)
    if found is None and nodes > 1:
        return [f"this job has {nodes} nodes and the run will use this one only; start it with srun"]
    if found is not None and gpus > max(1, found.local_world):
        return [f"{found.node} shows {gpus} GPUs and has {found.local_world} of the ranks; the others idle"]
    return []


def export(found: Where, environ: MutableMapping[str, str], gpus: int) -> None:
    """Write what Megatron and torch read: ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``, ``MASTER_ADDR``, ``MASTER_PORT``.

    With one visible GPU a task (``--gpus-per-task=1``) every task's GPU is its first.

    Raises:
        MooError: where the address of the first node cannot be found.
    """
    environ.update(RANK=str(found.rank), WORLD_SIZE=str(found.world))
    environ["LOCAL_RANK"] = "0" if gpus == 1 else str(found.local_rank)
    environ.setdefault("LOCAL_WORLD_SIZE", str(found.local_world))
    if found.launcher == "srun":
        environ.setdefault("MASTER_ADDR", _address(first_host(environ["SLURM_STEP_NODELIST"])))
        environ.setdefault("MASTER_PORT", str(_port(environ)))


def _from_ranks(environ: Mapping[str, str]) -> Where:
    missing = [name for name in _RANK_NAMES if not environ.get(name)]
    if missing:
        given = next(name for name in ("RANK", "WORLD_SIZE") if name in environ)
        raise MooError(
            f"{given} is set and {missing[0]} is not",
            "environment",
            "start ranks with torchrun or srun; to start them from here, unset it",
        )
    rank, world = (_number(environ, name) for name in ("RANK", "WORLD_SIZE"))
    if not rank < world:
        raise MooError(f"RANK is {rank} and WORLD_SIZE {world}", "environment", "ranks count from 0")
    elastic, tasks = "TORCHELASTIC_RUN_ID" in environ, _srun_tasks(environ)
    if elastic:
        groups = _number(environ, "GROUP_WORLD_SIZE", 1)
        # A step of one task says nothing: torchrun's agents can be one step each (an srun per node).
        if groups < tasks:
            raise MooError(
                f"srun started {tasks} tasks and torchrun made a run of {groups}: they would be {tasks // groups} "
                "runs in one folder",
                "environment",
                f"give torchrun --nnodes={tasks} and one rendezvous endpoint, with one task a node",
            )
        launcher = "torchrun in srun" if tasks else "torchrun"
    elif tasks and (tasks, _number(environ, "SLURM_PROCID", rank)) == (world, rank):
        launcher = "srun"
    elif tasks > 1:
        raise MooError(
            f"srun says task {environ['SLURM_PROCID']} of {tasks}, RANK and WORLD_SIZE say rank {rank} of {world}",
            "environment",
            "unset RANK and WORLD_SIZE to take srun's",
        )
    else:
        launcher = "RANK"  # in a step of one task, too: somebody's own launcher, started by srun
    _check_port(environ)
    local = _number(environ, "LOCAL_RANK", 0)
    here = _number(environ, "LOCAL_WORLD_SIZE", local + 1)
    if not local < here:
        raise MooError(
            f"LOCAL_RANK is {local} and LOCAL_WORLD_SIZE {here}",
            "environment",
            "ranks count from 0 on a machine",
        )
    if here > world:
        raise MooError(
            f"LOCAL_WORLD_SIZE is {here} and WORLD_SIZE {world}",
            "environment",
            "a machine has no more ranks than the run: start them with torchrun or srun",
        )
    return Where(launcher, _node(environ), rank, world, local, here)


def _check_port(environ: Mapping[str, str]) -> None:
    port = environ.get("MASTER_PORT")
    if port is not None and not (port.isdecimal() and 0 < int(port) < 65536):
        raise MooError(
            f"MASTER_PORT is {port!r}, a port from 1 to 65535 was expected",
            "environment",
            "set it to a free one, alike for all ranks, or unset it where torchrun or srun chooses it",
        )


def _from_srun(environ: Mapping[str, str]) -> Where:
    tasks, rank = _srun_tasks(environ), _number(environ, "SLURM_PROCID")
    node, local = _number(environ, "SLURM_NODEID", 0), _number(environ, "SLURM_LOCALID")
    counts = tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))
    if sum(counts) != tasks or node >= len(counts):
        raise MooError(
            f"SLURM_STEP_TASKS_PER_NODE is {environ.get('SLURM_STEP_TASKS_PER_NODE')!r}, SLURM_NTASKS {tasks} and "
            f"SLURM_NODEID {node}",
            "environment",
            "start the ranks with one srun",
        )
    if rank >= tasks or local >= counts[node]:
        raise MooError(
            f"SLURM_PROCID is {rank} of {tasks} and SLURM_LOCALID {local} of {counts[node]}",
            "environment",
            "both count from 0: start the ranks with one srun",
        )
    _check_port(environ)
    if "MASTER_ADDR" not in environ and "SLURM_STEP_NODELIST" not in environ:
        raise MooError("SLURM_STEP_NODELIST is not set", "environment", "set MASTER_ADDR to the first node")
    return Where("srun", _node(environ), rank, tasks, local, counts[node])


def _srun_tasks(environ: Mapping[str, str]) -> int:
    """Tasks of the srun step that this process is in; 0 outside one (a batch script, a shell of salloc)."""
    if (
        not any(name in environ for name in ("SLURM_STEP_ID", "SLURM_STEPID"))
        or "SLURM_PROCID" not in environ
    ):
        return 0
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    return _number(environ, name, 0)


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        raise MooError(
            f"{name} is {text!r}, not a number", "environment", "start ranks with torchrun or srun"
        )
    return int(text)


def _node(environ: Mapping[str, str]) -> str:
    return environ.get("SLURMD_NODENAME") or socket.gethostname()


def tasks_per_node(text: str) -> list[int]:
    """``"2(x3),1"`` to ``[2, 2, 2, 1]``.

    Raises:
        MooError: for anything else.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise MooError(f"SLURM_STEP_TASKS_PER_NODE is {text!r}", "environment")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_host(nodes: str) -> str:
    """First name of a SLURM node list: ``"gpu[007-010,12],login1"`` to ``"gpu007"``."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\])?([^,\[]*)", nodes)
    if match is None:
        raise MooError(f"{nodes!r} is no list of nodes", "SLURM_STEP_NODELIST")
    return match[1] + (match[2] or "") + (match[3] if match[2] else "")


def _address(host: str) -> str:
    """``host`` where its name resolves, else the address that SLURM itself uses for it."""
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        address = _slurm_address(host)
        if address is None:
            raise MooError(
                f"the name of the first node, {host}, does not resolve", "MASTER_ADDR", "set it to an address"
            ) from None
        return address
    return host


def _slurm_address(host: str) -> str | None:
    if shutil.which("scontrol") is None:
        return None
    command = ["scontrol", "show", "node", host]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    match = re.search(r"NodeAddr=(\S+)", shown.stdout)
    return match[1] if match else None


def _port(environ: Mapping[str, str]) -> int:
    """A port that every task of the step computes alike and other steps of the machine do not."""
    job, step = _number(environ, "SLURM_JOB_ID", 0), environ.get("SLURM_STEP_ID", "0")
    return _FIRST_PORT + (7 * job + (int(step) if step.isdigit() else 0)) % _PORTS


def visible_gpus() -> int:
    """GPUs that this process sees; 0 on a machine without."""
    from megatron_moo.training import platform

    if not platform.has_gpu():
        return 0
    import torch

    return torch.cuda.device_count()


def device(index: int) -> str:
    """What the rank that takes GPU ``index`` computes on, in words."""
    from megatron_moo.training import platform

    if not platform.has_gpu():
        return "CPU"
    import torch

    return f"GPU {index} ({torch.cuda.get_device_name(index)})"
