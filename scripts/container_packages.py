"""Print what pip has to install in a container: the project's requirements at the tested releases.

What the base image brings stays: NVIDIA's builds of torch and numpy belong to its NCCL and Transformer Engine, and a
wheel from the index would replace them. Needs the standard library alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

HERE = Path(__file__).resolve().parent


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(folder: Path) -> list[str]:
    """Lines of a requirements file: what is asked for, then the pins of what the base does not bring."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    pins = [
        line.split("#")[0].strip()
        for line in (folder / "constraints.txt").read_text(encoding="utf-8").splitlines()
    ]
    have = {
        normal(found.metadata["Name"]): found.version for found in distributions() if found.metadata["Name"]
    }
    pinned = {normal(pin.split("==")[0]): pin.split("==")[1] for pin in pins if "==" in pin}
    # The base's own versions are pinned too, so that no requirement of a requirement moves them.
    kept = {name: have.get(name, release) for name, release in pinned.items()}
    kept |= {name: have[name] for name in ("torch", "numpy", "triton") if name in have}
    lines = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    asked = {normal(re.split(r"[\[<>=]", line)[0]) for line in lines}
    return [*lines, *(f"{name}=={kept[name]}" for name in sorted(asked & set(kept)) if name not in have)]


if __name__ == "__main__":
    sys.stdout.write("\n".join(main(HERE)) + "\n")
