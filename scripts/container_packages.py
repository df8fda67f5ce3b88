"""Print what pip is told in a container: ``requirements``, or ``constraints`` at the tested releases.

What the base image brings stays: NVIDIA's builds of torch, numpy and Triton belong to its NCCL and Transformer Engine,
and a wheel from the index would replace them. Other packages of the base may be updated where a requirement asks for
that. Needs the standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

KEEP = ("torch", "numpy", "triton")


def normal(name: str) -> str:
    """A project's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(folder: Path) -> list[str]:
    """What running needs, and what building the package needs."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return [*project["project"]["dependencies"], *project["build-system"]["requires"]]


def constraints(folder: Path, have: dict[str, str]) -> list[str]:
    """The tested release of every package that the base does not bring, and the base's own of :data:`KEEP`."""
    lines = (folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    found = [f"{name}=={release}" for name, release in tested.items() if normal(name) not in have]
    return [*found, *(f"{name}=={have[name]}" for name in KEEP if name in have)]


def main(what: str, folder: Path) -> list[str]:
    """Lines of a file for pip."""
    if what == "requirements":
        return requirements(folder)
    found = ((dist.metadata["Name"], dist.version) for dist in distributions())
    return constraints(folder, {normal(name): version for name, version in found if name})


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    root = here if (here / "pyproject.toml").exists() else here.parent
    sys.stdout.write("\n".join(main(sys.argv[1], root)) + "\n")
