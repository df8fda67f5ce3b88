"""A SLURM of two nodes on this machine: munged, slurmctld and two slurmd, all in a folder of their own.

Nothing of the system's configuration is read or changed; SLURM_CONF names the folder's slurm.conf. Needs root, as
slurmd does, and Debian's slurm-wlm and munge (tests/slurm/install.sh).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

NODES = ("moo1", "moo2")
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONF = """\
ClusterName=moo
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=120
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
NodeName=moo1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=4000
NodeName=moo2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=4000
PartitionName=main Nodes=moo[1-2] Default=YES PriorityTier=1 GraceTime=120 State=UP
PartitionName=urgent Nodes=moo[1-2] PriorityTier=9 PreemptMode=OFF State=UP
"""


def missing() -> str | None:
    """Why no cluster can be made here, in a sentence; None where one can."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        return f"SLURM is not installed ({absent[0]} is missing): bash tests/slurm/install.sh"
    return None if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """Two nodes; use it as a context manager.

    Args:
        folder: for configuration, state, sockets and logs; short, because sockets are in it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        (self.folder / "state").mkdir(parents=True)
        ports = _free_ports(3)
        text = CONF.format(host=socket.gethostname().split(".")[0], folder=self.folder, ports=ports)
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        for path, mode in ((key, 0o400), (self.folder, 0o755)):
            path.chmod(mode)
        files = {"key-file": key, "socket": self.folder / "munge.socket"}
        files |= {f"{name}-file": self.folder / f"munge.{name}" for name in ("pid", "log", "seed")}
        # --force: owners of folders above, such as /tmp, are not ours to judge.
        self._start(
            "munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())
        )
        try:
            wait_for(lambda: files["socket"].exists(), "munged opened no socket")
            self._start("slurmctld", "-D", "-c")
            for node in NODES:
                self._start("slurmd", "-D", "-c", "-N", node)
            wait_for(
                lambda: self.run("sinfo", "-h", "-o", "%D %t").strip() == "2 idle",
                "the nodes are not idle",
                60,
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.env, timeout=30, check=False)
        time.sleep(1.0)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()

    def run(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """Output of a SLURM command; raises ``CalledProcessError`` when it fails."""
        done = subprocess.run(
            command,
            env={**self.env, **(env or {})},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed ({done.returncode}): {done.stderr.strip()}")
        return done.stdout

    def submit(self, *command: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
        """``sbatch``; the job's number."""
        return self.run("sbatch", "--parsable", *command, env=env, cwd=cwd).strip()

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` knows."""
        shown = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, number: str, states: tuple[str, ...], seconds: float) -> str:
        """Wait for a job to reach one of ``states``; the state."""
        wait_for(
            lambda: self.job(number)["JobState"] in states, f"job {number} did not become {states}", seconds
        )
        return self.job(number)["JobState"]

    def _start(self, name: str, *args: str) -> None:
        log = (self.folder / f"{name}.{len(self._daemons)}.out").open("w")
        self._daemons.append(
            subprocess.Popen([shutil.which(name) or name, *args], env=self.env, stdout=log, stderr=log)
        )


def wait_for(ready: Any, why: str, seconds: float = 20.0) -> None:
    """Poll ``ready`` until it is true; raise ``TimeoutError`` saying ``why`` it never was."""
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            raise TimeoutError(why)
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
