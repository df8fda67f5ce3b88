"""``megatron-moo doctor``: what is installed on this machine, and what a run will use.

Every package is imported in a process of its own, so that one that is broken, crashes or hangs is a line in
the answer and not the end of it. This file is also that process's program and so imports the standard library
only, except where it draws.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SUPPORTED_MEGATRON = "0.19.2"
TESTED_TORCH = "2.13.0"
MINIMUM_PYTHON = (3, 12)
_IMPORT_TIMEOUT_S = 180.0
_TOOL_TIMEOUT_S = 10.0

Facts = dict[str, Any]


# In the probing process: each returns what it found, or raises ----------------------------------------------


def _probe_torch() -> Facts:
    import torch
    import torch.distributed as dist

    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(index)
            gpus.append({"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1)})
    nccl = dist.is_available() and dist.is_nccl_available()
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": gpus,
        "gloo": dist.is_available() and dist.is_gloo_available(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if nccl else None,
    }


def _probe_megatron() -> Facts:
    found = {"version": version("megatron-core")}
    if found["version"] == SUPPORTED_MEGATRON:  # another one is refused anyway
        for name in ("megatron.core.distributed", "megatron.training.training"):
            importlib.import_module(name)
    return found


def _probe_transformer_engine() -> Facts:
    importlib.import_module("transformer_engine.pytorch")
    return {"version": importlib.import_module("transformer_engine").__version__}


def _probe_apex() -> Facts:
    spec = importlib.util.find_spec("apex")
    folders = list(spec.submodule_search_locations or []) if spec else []
    if not any(Path(folder, "optimizers").is_dir() for folder in folders):
        return {"version": _version_or("apex", "?"), "foreign": True}
    importlib.import_module("apex.optimizers")
    importlib.import_module("amp_C")
    return {"version": _version_or("apex", "built from source")}


def _probe_triton() -> Facts:
    return {"version": importlib.import_module("triton").__version__}


# Name of the module that must be there at all, and the probe that imports it.
_PROBES: dict[str, tuple[str, Callable[[], Facts]]] = {
    "torch": ("torch", _probe_torch),
    "megatron_core": ("megatron", _probe_megatron),
    "transformer_engine": ("transformer_engine", _probe_transformer_engine),
    "apex": ("apex", _probe_apex),
    "triton": ("triton", _probe_triton),
}


def _version_or(name: str, otherwise: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return otherwise


def _answer(name: str) -> None:
    module, look = _PROBES[name]
    if importlib.util.find_spec(module) is None:
        found: Facts = {"installed": False}
    else:
        try:
            found = {"installed": True, **look()}
        except Exception as error:  # whatever a broken package raises at import is the answer
            found = {"installed": True, "error": f"{type(error).__name__}: {error}"}
    sys.stdout.write("\n" + json.dumps(found) + "\n")


# In the asking process --------------------------------------------------------------------------------------


def probe(name: str, timeout: float = _IMPORT_TIMEOUT_S) -> Facts:
    """Import one package in a process of its own.

    Args:
        name: ``torch``, ``megatron_core``, ``transformer_engine``, ``apex`` or ``triton``.
        timeout: seconds until the import counts as hanging.

    Returns:
        ``installed``, and either what was found (``version`` and more) or ``error``, one line.
    """
    # -P: this file's folder stays off sys.path, where its neighbours would hide other packages.
    command = [sys.executable, "-P", __file__, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"installed": True, "error": f"the import did not end within {timeout:g} s"}
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return {"installed": True, "error": f"the import ended its process ({done.returncode}): {last}"}
    found: Facts = json.loads(lines[-1])
    if "error" in found:
        found["error"] = " ".join(found["error"].split())
    return found


def collect() -> Facts:
    """Everything that :func:`show` draws, as plain values (``--json`` prints it).

    Returns:
        one entry per part, ``run`` (platform, backend and layer spec that a run will use), and the lists
        ``problems`` (no run is possible) and ``warnings``, each entry with ``what`` and ``todo``.
    """
    with ThreadPoolExecutor(max_workers=len(_PROBES)) as threads:
        probes = dict(zip(_PROBES, threads.map(probe, _PROBES), strict=True))
    facts: Facts = {"python": {"version": platform.python_version(), "path": sys.executable}, **probes}
    facts["driver"] = _driver()
    facts["slurm"] = _slurm()
    facts["machine"] = _machine()
    facts["run"] = choose(facts)
    facts["problems"], facts["warnings"] = find_problems(facts), find_warnings(facts)
    return facts


def choose(facts: Facts) -> Facts:
    """What a run on this machine uses; the same rule as ``megatron_moo.training.platform``.

    Returns:
        ``platform`` (``cuda`` or ``cpu``), ``backend`` (``nccl`` or ``gloo``), ``layer_spec``, ``adam`` (whose), and
        ``fused`` (what the packages add).
    """
    engine = facts["transformer_engine"]["installed"]
    apex = facts["apex"]["installed"] and not facts["apex"].get("foreign")
    adam = "Transformer Engine" if engine else "Apex" if apex else "torch"
    if not facts["torch"].get("gpus"):
        return {"platform": "cpu", "backend": "gloo", "layer_spec": "local", "adam": adam, "fused": []}
    spec = "transformer_engine" if engine else "local"
    fused = ["norms", "attention", "FP8 by --fp8-format"] if engine else ["LayerNorm"] if apex else []
    return {"platform": "cuda", "backend": "nccl", "layer_spec": spec, "adam": adam, "fused": fused}


def find_problems(facts: Facts) -> list[dict[str, str]]:
    """Why no run is possible here; empty when one is."""
    found = []
    if sys.version_info < MINIMUM_PYTHON:
        found.append(_item(f"Python {facts['python']['version']} is too old", "use Python 3.12: make setup"))
    for name, title in (("torch", "torch"), ("megatron_core", "megatron-core")):
        if not facts[name]["installed"]:
            found.append(_item(f"{title} is not installed", "make setup"))
        elif "error" in facts[name]:
            what = f"{title} does not import ({facts[name]['error']})"
            found.append(_item(what, "rm -rf .venv && make setup"))
    megatron = facts["megatron_core"].get("version")
    if megatron not in (None, SUPPORTED_MEGATRON):
        todo = f"pip install 'megatron-core[training]=={SUPPORTED_MEGATRON}'"
        found.append(
            _item(f"megatron-core {megatron} is not {SUPPORTED_MEGATRON}, the only one that works", todo)
        )
    backend = facts["run"]["backend"]
    if "version" in facts["torch"] and not facts["torch"][backend]:
        found.append(_item(f"this torch was built without {backend}", "install the usual wheel: make setup"))
    if facts["run"]["layer_spec"] == "transformer_engine" and "error" in facts["transformer_engine"]:
        what = f"Transformer Engine does not import ({facts['transformer_engine']['error']})"
        found.append(_item(what, "build it for this torch, or uninstall it"))
    return found


def find_warnings(facts: Facts) -> list[dict[str, str]]:
    """What is odd here but does not keep a run from starting."""
    found = []
    installed = str(facts["torch"].get("version", TESTED_TORCH)).split("+")[0]
    if installed != TESTED_TORCH:
        found.append(_item(f"torch {installed} is not {TESTED_TORCH}, the one that is tested", "make test"))
    if facts["driver"] and not facts["torch"].get("gpus"):
        name = facts["driver"][0]["name"]
        what = f"the driver shows {name}, but torch cannot use it, so a run will use the CPU"
        found.append(_item(what, f"compare the driver with torch's CUDA {facts['torch'].get('cuda')}"))
    if facts["apex"].get("foreign"):
        what = f"apex {facts['apex']['version']} is PyPI's package of that name, not NVIDIA's Apex"
        found.append(_item(what, "pip uninstall apex"))
    for name, title in (("apex", "Apex"), ("triton", "Triton")):
        if "error" in facts[name]:
            what = f"{title} does not import ({facts[name]['error']})"
            found.append(_item(what, "reinstall or uninstall it"))
    return found


def _item(what: str, todo: str) -> dict[str, str]:
    return {"what": what, "todo": todo}


def _tool(*command: str) -> str | None:
    """Output of a system tool; None when it is not there, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _driver() -> list[Facts]:
    """GPUs as the driver names them, whether or not torch can use them."""
    query = "--query-gpu=name,memory.total,driver_version"
    table = _tool("nvidia-smi", query, "--format=csv,noheader,nounits")
    rows = [[cell.strip() for cell in line.split(",")] for line in (table or "").splitlines()]
    return [{"name": row[0], "memory_mib": row[1], "driver": row[2]} for row in rows if len(row) == 3]


def _slurm() -> Facts:
    if shutil.which("sinfo") is None or shutil.which("sbatch") is None:
        return {"installed": False}
    found: Facts = {"installed": True, "version": _tool("sinfo", "--version")}
    nodes = _tool("sinfo", "--noheader", "--format=%D %t")
    found["nodes"] = None if nodes is None else ", ".join(nodes.splitlines())
    return found


def _machine() -> Facts:
    """Cores and memory that this process may use: the machine's, or its container's share."""
    cores = float(len(os.sched_getaffinity(0)))
    memory = int(os.sysconf("SC_PAGE_SIZE")) * int(os.sysconf("SC_PHYS_PAGES"))
    quota, period, *_ = [*_read("/sys/fs/cgroup/cpu.max").split(), "", ""]
    if quota.isdigit() and period.isdigit():
        cores = min(cores, int(quota) / int(period))
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    if limit.isdigit():
        memory = min(memory, int(limit))
    return {"cores": cores, "memory_gib": round(memory / 2**30, 1)}


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


# Drawing ----------------------------------------------------------------------------------------------------


def rows(facts: Facts) -> list[tuple[str, str]]:
    """The lines of the table: what, and what was found."""
    torch, gpus = facts["torch"], facts["torch"].get("gpus") or []
    driver = facts["driver"][0]["driver"] if facts["driver"] else "no driver"
    names = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in gpus)
    slurm, machine = facts["slurm"], facts["machine"]
    nodes = slurm.get("nodes") or "the controller does not answer"
    return [
        ("Python", f"{facts['python']['version']} ({facts['python']['path']})"),
        ("torch", _state(torch) + (f", CUDA {torch['cuda']}" if torch.get("cuda") else "")),
        ("megatron-core", _state(facts["megatron_core"])),
        ("GPU", f"{names}, driver {driver}" if gpus else f"none that torch can use ({driver})"),
        ("NCCL", torch.get("nccl") or "not in this torch"),
        ("Transformer Engine", _state(facts["transformer_engine"])),
        ("Apex", "not NVIDIA's (see below)" if facts["apex"].get("foreign") else _state(facts["apex"])),
        ("Triton", _state(facts["triton"])),
        ("SLURM", f"{slurm['version']}; nodes: {nodes}" if slurm["installed"] else "not installed"),
        ("Machine", f"{machine['cores']:g} cores, {machine['memory_gib']:g} GiB of memory"),
    ]


def _state(part: Facts) -> str:
    if not part["installed"]:
        return "not installed"
    return "broken (see below)" if "error" in part else str(part["version"])


def show(facts: Facts) -> None:
    """Draw one screen on stdout; what keeps a run from starting goes to stderr, one line each."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    errors, screen = Console(stderr=True, soft_wrap=True), Console(soft_wrap=True)
    for item in facts["problems"]:
        errors.print(Text(f"doctor: {item['what']}; {item['todo']}"), style="red")
    table = Table("part", "found", title="megatron-moo doctor", title_justify="left")
    for name, value in rows(facts):
        table.add_row(Text(name), Text(value))
    screen.print(table)
    for item in facts["warnings"]:
        screen.print(Text(f"Note: {item['what']}; {item['todo']}"), style="yellow")
    run = facts["run"]
    fused = f" (fused: {', '.join(run['fused'])})" if run["fused"] else ""
    verdict = f"platform {run['platform']}, backend {run['backend']}, layer spec {run['layer_spec']}{fused}"
    verdict += f", Adam of {run['adam']}"
    verdict = "No run is possible here yet." if facts["problems"] else f"A run here will use: {verdict}"
    screen.print(Text(verdict), style="bold")


def run(args: argparse.Namespace) -> int:
    """Answer the command: 0 when a run is possible on this machine, 1 otherwise."""
    facts = collect()
    if args.json:
        sys.stdout.write(json.dumps(facts, indent=2) + "\n")
    else:
        show(facts)
    return 1 if facts["problems"] else 0


def add_subcommands(subparsers: Any) -> None:
    """Add ``doctor`` to the command line; ``args.func(args)`` answers it with an exit status."""
    text = "say what is installed on this machine and what a run will use"
    parser = subparsers.add_parser("doctor", help=text, description=text.capitalize() + ".")
    parser.add_argument("--json", action="store_true", help="print everything that was found as JSON")
    parser.set_defaults(func=run)


if __name__ == "__main__":
    _answer(sys.argv[1])
