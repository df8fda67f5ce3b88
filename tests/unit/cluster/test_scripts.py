"""The sbatch scripts against stand-ins of srun, scontrol and nvidia-smi (a real SLURM: end_to_end/test_slurm.py)."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT

SLURM = ROOT / "examples" / "slurm"
SCRIPTS = sorted(
    [
        *SLURM.glob("*.sh"),
        *SLURM.glob("*.sbatch"),
        *(ROOT / "scripts").glob("*.sh"),
        *ROOT.glob("tests/*/*.sh"),
    ]
)
# srun: the node check does what $CHECK says; the step does what $DO says and writes down how it was called.
FAKES = {
    "srun": """\
case "$*" in *node_check.sh*) touch checked; eval "${CHECK:-}"; exit 0 ;; esac
printf '%s\\n' "$@" >srun.args
env >srun.env
trap 'echo USR1 >got; echo 7 >"$RUN/checkpoints/latest_checkpointed_iteration.txt"; exit 1' USR1
eval "$DO"
""",
    "scontrol": """\
case "$1 $2" in
    "show hostnames") printf 'localhost\\nnode-without-a-name\\n' ;;
    "show node") echo "NodeName=$3 Arch=x86_64 NodeAddr=10.9.8.7 NodeHostName=$3" ;;
    "show job") echo "   StartTime=2026-11-25T07:00:00 EndTime=2026-11-26T07:00:00
   PreemptEligibleTime=2026-11-25T07:00:00 PreemptTime=${PREEMPT:-None}" ;;
    requeue*) echo "$2" >requeued ;;
esac
""",
}


def fake(folder: Path, name: str, body: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f"#!/usr/bin/env bash\n{body}", encoding="utf-8")
    path.chmod(0o755)


def environment(folder: Path, **more: str) -> dict[str, str]:
    for name, body in FAKES.items():
        fake(folder, name, body)
    (folder / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "NCCL", "MOO"))}
    job = {
        "SLURM_JOB_ID": "5", "SLURM_JOB_NODELIST": "two", "SLURM_JOB_NUM_NODES": "2", "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_GPUS_ON_NODE": "8", "SLURM_CPUS_PER_TASK": "64",
        "RUN_DIR": str(folder / "run"), "RUN": str(folder / "run"),
        "DO": "exit 0", "PATH": f"{folder / 'bin'}:{env['PATH']}", "PYTHON": sys.executable,
    }  # fmt: skip
    return env | job | more


def sbatch(folder: Path, script: str, args: tuple[str, ...] | None = None, **more: str) -> subprocess.Popen:
    """A script under way in ``folder``, with a recipe there and a flag unless ``args`` are others."""
    recipe = folder / "recipe.yaml"
    recipe.touch()
    command = ["bash", str(SLURM / script), *((str(recipe), "--lr", "1e-4") if args is None else args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment(folder, **more), stdout=pipe, stderr=subprocess.STDOUT, text=True
    )


def ended(job: subprocess.Popen) -> tuple[int, str]:
    out, _ = job.communicate(timeout=30)
    return job.returncode, out


def saved(folder: Path, step: int) -> None:
    (folder / "run" / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "run" / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))


@pytest.mark.parametrize("script", ["one_node.sbatch", "many_nodes.sbatch"])
def test_one_torchrun_a_node_and_what_it_is_told(tmp_path: Path, script: str) -> None:
    status, out = ended(sbatch(tmp_path, script))
    assert status == 0, out
    args = (tmp_path / "srun.args").read_text().splitlines()
    assert args == [
        "--ntasks-per-node=1", "--kill-on-bad-exit=1", "bash", str(SLURM / "node.sh"), "-m", "megatron_moo.cli",
        "train", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run"), "--exit-signal-handler",
        "--lr", "1e-4",
    ]  # fmt: skip
    env = dict(line.split("=", 1) for line in (tmp_path / "srun.env").read_text().splitlines() if "=" in line)
    assert env["MOO_ADDRESSES"] == "localhost 10.9.8.7", "a name that does not resolve is SLURM's address"
    assert (env["NPROC"], env["SRUN_CPUS_PER_TASK"], env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) == (
        "8",
        "64",
        "540",
    )
    assert env["CUDA_DEVICE_MAX_CONNECTIONS"] == "1" and env["NCCL_DEBUG"] == "WARN"
    # node.sh, as srun would start it on the second node.
    fake(tmp_path, "python", 'printf "%s\\n" "$@"\n')
    env |= {"PYTHON": str(tmp_path / "bin" / "python"), "SLURM_STEP_NUM_NODES": "2", "SLURM_NODEID": "1"}
    done = subprocess.run(
        ["bash", *args[3:6], "x"], env=env, capture_output=True, text=True, timeout=30, check=True
    )
    told = done.stdout.splitlines()
    for word in (
        "--nnodes=2", "--nproc-per-node=8", f"--rdzv-endpoint=localhost:{env['MOO_PORT']}", "--local-addr=10.9.8.7",
        "--rdzv-conf=is_host=0,join_timeout=600", "--signals_to_handle=SIGTERM,SIGUSR1", "--max-restarts=2",
    ):  # fmt: skip
        assert word in told
    assert told[-3:] == ["-m", "megatron_moo.cli", "x"]


def test_containers(tmp_path: Path) -> None:
    more = {"IMAGE": "/images/moo", "DATA": "/data", "PYTHON": ""}
    status, out = ended(sbatch(tmp_path, "pyxis.sbatch", **more))
    assert status == 0, out
    args = (tmp_path / "srun.args").read_text().splitlines()
    run = tmp_path / "run"
    assert "--container-image=/images/moo" in args and "--no-container-mount-home" in args
    mounts = f"{ROOT}:{ROOT},{tmp_path}:{tmp_path},/data:/data:ro,{run}:{run}"
    assert f"--container-mounts={mounts}" in args, "the recipe's folder too"
    status, out = ended(sbatch(tmp_path, "apptainer.sbatch", **more))
    assert status == 0, out
    args = (tmp_path / "srun.args").read_text().splitlines()
    start = args.index("apptainer")
    assert args[start : start + 6] == ["apptainer", "exec", "--nv", "--no-home", "--bind", mounts]
    assert args[start + 8 : start + 11] == ["/images/moo", "bash", str(SLURM / "node.sh")]
    status, out = ended(sbatch(tmp_path, "pyxis.sbatch"))
    assert status != 0 and "set IMAGE" in out


@pytest.mark.parametrize("script", ["pyxis.sbatch", "apptainer.sbatch"])
def test_a_container_mounts_what_was_given_relative_where_the_run_looks(tmp_path: Path, script: str) -> None:
    (tmp_path / "data").mkdir()
    more = {"IMAGE": "i", "RUN_DIR": "run", "DATA": "data", "PYTHON": ""}
    status, out = ended(sbatch(tmp_path, script, ("recipe.yaml",), **more))
    assert status == 0, out
    text = (tmp_path / "srun.args").read_text()
    run, data = tmp_path / "run", tmp_path / "data"
    assert f"{ROOT}:{ROOT},{tmp_path}:{tmp_path},{data}:{data}:ro,{run}:{run}\n" in text
    assert f"train\n{tmp_path}/recipe.yaml\n--run-dir\n{run}\n" in text


@pytest.mark.parametrize(("args", "told"), [((), "no recipe"), (("gone.yaml", "--lr", "1e-4"), "gone.yaml")])
def test_without_a_recipe_nothing_is_started(tmp_path: Path, args: tuple[str, ...], told: str) -> None:
    for script in ("one_node.sbatch", "pyxis.sbatch", "apptainer.sbatch"):
        status, out = ended(sbatch(tmp_path, script, args, IMAGE="i", RUN_DIR=str(tmp_path / "new")))
        assert status == 2 and f": {told}: sbatch SCRIPT RECIPE [FLAGS] wants" in out and out.count("\n") == 1
        assert not any((tmp_path / name).exists() for name in ("checked", "srun.args", "new"))


@pytest.mark.parametrize("text", ["release", "12x"])
def test_a_tracker_without_a_number_is_step_0(tmp_path: Path, text: str) -> None:
    tracker = tmp_path / "run" / "checkpoints" / "latest_checkpointed_iteration.txt"
    tracker.parent.mkdir(parents=True)
    for state in ("", "x y z", "12"):
        tracker.write_text(text)
        (tmp_path / "run" / "requeue.state").write_text(state)
        more = {
            "DO": 'echo 09 >"$RUN/checkpoints/latest_checkpointed_iteration.txt"',
            "SLURM_RESTART_COUNT": "1",
        }
        status, out = ended(sbatch(tmp_path, "one_node.sbatch", **more))
        assert status == 0 and "step 0 is saved; starting" in out and "status 0; step 9 is saved" in out, out


@pytest.mark.parametrize(("name", "status", "requeued"), [("USR1", 0, True), ("TERM", 143, False)])
def test_a_signal_before_the_ranks_are_started_starts_none(
    tmp_path: Path, name: str, status: int, requeued: bool
) -> None:
    more = {"CHECK": f"kill -{name} $PPID", "MAX_STALLS": "2"}
    found, out = ended(sbatch(tmp_path, "many_nodes.sbatch", **more))
    assert (found, (tmp_path / "requeued").exists()) == (status, requeued), out
    assert f"SIG{name} came before the ranks were started" in out
    assert (tmp_path / "checked").exists() and not (tmp_path / "srun.args").exists()


def test_the_exchange_benchmark(tmp_path: Path) -> None:
    status, out = ended(sbatch(tmp_path, "exchange_benchmark.sbatch"))
    assert status == 0, out
    args = (tmp_path / "srun.args").read_text().splitlines()
    assert args[3:7] == [str(SLURM / "node.sh"), str(ROOT / "bench" / "exchange.py"), "--backend", "nccl"]
    assert "MAX_RESTARTS=0" in (tmp_path / "srun.env").read_text().splitlines()


def test_sigusr1_is_passed_on_and_the_job_requeued(tmp_path: Path) -> None:
    job = sbatch(tmp_path, "many_nodes.sbatch", DO="while :; do sleep 0.1; done")
    deadline = time.monotonic() + 20
    while not (tmp_path / "srun.env").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    job.send_signal(10)
    status, out = ended(job)
    assert status == 0, out
    assert (tmp_path / "got").read_text() == "USR1\n" and (tmp_path / "requeued").read_text() == "5\n"
    assert "after SIGUSR1; step 7 is saved" in out


SAVE = 'echo 4 >"$RUN/checkpoints/latest_checkpointed_iteration.txt"'
LATER = "2026-11-25T08:00:00"  # than the start of the job


@pytest.mark.parametrize(
    ("before", "do", "more", "status", "requeued"),
    [
        (0, "exit 0", {}, 0, False),  # done
        (3, "exit 9", {}, 9, False),  # an error is not tried for ever
        (0, "exit 1", {"PREEMPT": LATER}, 3, False),  # pre-empted before anything was saved
        (0, f"{SAVE}; exit 1", {"PREEMPT": LATER}, 0, True),
        (0, f"{SAVE}; exit 137", {"PREEMPT": LATER}, 0, True),
        (0, f"{SAVE}; exit 9", {"PREEMPT": LATER}, 9, False),  # an error of its own, at such a time
        (0, f"{SAVE}; exit 1", {"PREEMPT": "2026-11-24T08:00:00"}, 1, False),  # of an earlier start
    ],
)
def test_when_a_job_is_requeued(
    tmp_path: Path, before: int, do: str, more: dict[str, str], status: int, requeued: bool
) -> None:
    saved(tmp_path, before)
    found, out = ended(sbatch(tmp_path, "many_nodes.sbatch", DO=do, **more))
    assert (found, (tmp_path / "requeued").exists()) == (status, requeued), out


def test_a_run_without_progress_between_two_starts_is_not_started_again(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    assert ended(sbatch(tmp_path, "many_nodes.sbatch"))[0] == 0
    saved(tmp_path, 20)
    assert ended(sbatch(tmp_path, "many_nodes.sbatch", SLURM_RESTART_COUNT="1"))[0] == 0, (
        "ten steps were saved"
    )
    (tmp_path / "srun.args").unlink()
    status, out = ended(sbatch(tmp_path, "many_nodes.sbatch", SLURM_RESTART_COUNT="2"))
    assert status == 3 and "no step was saved since the last start (still 20)" in out
    assert not (tmp_path / "srun.args").exists()
    assert ended(sbatch(tmp_path, "many_nodes.sbatch", SLURM_RESTART_COUNT="2", MAX_STALLS="2"))[0] == 0
    assert ended(sbatch(tmp_path, "many_nodes.sbatch", SLURM_RESTART_COUNT="3", MAX_STALLS="2"))[0] == 3
    assert ended(sbatch(tmp_path, "many_nodes.sbatch"))[0] == 0, "another job may try"


GOOD = "0, 0, 4, Not Active\\n1, 0, 4, Not Active\\n"


@pytest.mark.parametrize(
    ("table", "gpus", "free", "message"),
    [
        (GOOD, "2", "0", None),
        (GOOD, "0", "0", None),
        (GOOD, "8", "0", "2 GPUs answer, SLURM gave 8"),
        (GOOD.replace("1, 0", "1, 3"), "2", "0", "GPU 1 has 3 uncorrected memory errors"),
        (GOOD.replace("0, 0, 4", "0, 0, 70000"), "2", "0", "GPU 0 has 70000 MiB in use"),
        (GOOD.replace("Not Active\\n1", "Active\\n1"), "2", "0", "GPU 0 is slowed down by heat"),
        (None, "2", "0", "nvidia-smi does not answer"),
        (GOOD, "2", "99999999", "99999999 wanted"),
    ],
)
def test_node_check(tmp_path: Path, table: str | None, gpus: str, free: str, message: str | None) -> None:
    fake(tmp_path, "nvidia-smi", f"printf '{table}'\n" if table else "echo no driver; exit 9\n")
    env = environment(
        tmp_path, SLURM_GPUS_ON_NODE=gpus, SLURMD_NODENAME="gpu7", MIN_FREE_GB=free, MIN_SHM_GB="0"
    )
    command = ["bash", str(SLURM / "node_check.sh"), str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    if message is None:
        assert done.returncode == 0 and done.stdout.startswith(f"node check: gpu7: fit ({gpus} GPUs"), (
            done.stderr
        )
    else:
        assert (
            done.returncode == 1 and f"node check: gpu7: {message}" in done.stderr
        ) or message in done.stderr
        assert done.stdout == ""


def test_an_older_driver_has_another_name_for_heat(tmp_path: Path) -> None:
    """Before release 535; what it says to the newer name, and its status."""
    told = 'Field "clocks_event_reasons.hw_thermal_slowdown" is not a valid field to query.'
    old = f"""case "$*" in *clocks_event_reasons*) echo '{told}'; exit 2 ;; esac\nprintf '0, 0, 4, Active\\n'\n"""
    fake(tmp_path, "nvidia-smi", old)
    env = environment(tmp_path, SLURM_GPUS_ON_NODE="1", MIN_FREE_GB="0", MIN_SHM_GB="0")
    command = ["bash", str(SLURM / "node_check.sh"), str(tmp_path / "run")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1 and done.stderr.endswith(": GPU 0 is slowed down by heat\n"), done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    env = environment(tmp_path, SLURM_GPUS_ON_NODE="0", MIN_FREE_GB="0", MIN_SHM_GB="0")
    done = subprocess.run(
        ["bash", str(SLURM / "node_check.sh"), str(tmp_path / "gone")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and f"cannot write to {tmp_path / 'gone'}" in done.stderr


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found is not None, f"{name} is one of the test requirements: make setup"
    return found


def test_shell_scripts_are_clean() -> None:
    assert len(SCRIPTS) >= 12
    command = [tool("shellcheck"), "-x", "-P", str(ROOT), "-S", "style", *map(str, SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_dockerfile_is_clean() -> None:
    done = subprocess.run(
        [tool("hadolint"), "Dockerfile"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and done.stdout == "", done.stdout


@pytest.mark.parametrize("uid", ["10001", "1000", "0"])
def test_the_images_user_may_have_a_number_that_the_base_has(tmp_path: Path, uid: str) -> None:
    """The Dockerfile's own useradd, on the accounts of Ubuntu 24.04 in a folder."""
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("useradd needs root")
    etc = tmp_path / "etc"
    etc.mkdir()
    (etc / "passwd").write_text(
        "root:x:0:0:root:/root:/bin/bash\nubuntu:x:1000:1000::/home/ubuntu:/bin/bash\n"
    )
    (etc / "group").write_text("root:x:0:\nubuntu:x:1000:\n")
    found = re.search(r"^RUN (useradd .*?) \\\n", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found is not None
    command = f"{found[1]} --prefix {tmp_path}".replace("--create-home", "--no-create-home")
    env = {**os.environ, "MOO_UID": uid}
    done = subprocess.run(["bash", "-c", command], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(rf"^moo:[^:]*:{uid}:", (etc / "passwd").read_text(), re.MULTILINE)
    assert "\nmoo:" in (etc / "group").read_text(), "which /workspace is given to"


def test_a_container_keeps_the_bases_torch() -> None:
    spec = importlib.util.spec_from_file_location("packages", ROOT / "scripts" / "container_packages.py")
    assert spec is not None and spec.loader is not None
    packages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(packages)
    asked = packages.requirements(ROOT)
    assert "megatron-core[training]==0.19.2" in asked and any(line.startswith("setuptools") for line in asked)
    plain = packages.constraints(ROOT, {})
    assert "torch==2.13.0" in plain and "megatron-core==0.19.2" in plain
    base = packages.constraints(ROOT, {"torch": "2.12.0a0+nv26.5", "numpy": "2.1.0", "pyyaml": "6.0.1"})
    assert "torch==2.12.0a0+nv26.5" in base and "numpy==2.1.0" in base and "megatron-core==0.19.2" in base
    assert not [line for line in base if line.startswith(("torch==2.13", "PyYAML", "numpy==2.5"))]
