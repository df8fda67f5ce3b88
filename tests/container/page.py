"""Build the image, run it, and write what it printed into docs/container.md.

``python -m tests.container.page FOLDER [--built]``; ``--built`` takes the image that FOLDER holds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "container.md"
MARKS = ("<!-- written by tests/container/page.py -->", "<!-- end -->")
QUICKSTART = "/opt/megatron_moo/examples/quickstart.yaml"
STEPS = "20"  # of its 200: that it trains inside is what is shown, not how well


def missing(folder: Path) -> str | None:
    """Why no image can be built here, in a sentence; None where one can."""
    absent = [tool for tool in ("buildah", "mmdebstrap") if shutil.which(tool) is None]
    if absent:
        return f"{absent[0]} is not installed: bash tests/container/install.sh"
    if os.geteuid() != 0:
        return "a build without a container engine needs root"
    free = shutil.disk_usage(folder).free / 1e9
    return None if free > 30 else f"{free:.0f} GB free in {folder}, 30 wanted"


class Image:
    """``localhost/megatron-moo`` in buildah's storage below ``folder``; built when it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._options = [
            "--storage-driver",
            "vfs",
            "--root",
            f"{folder}/storage",
            "--runroot",
            f"{folder}/runroot",
        ]

    def build(self, timeout: float = 1800) -> None:
        script = ROOT / "tests" / "container" / "build.sh"
        subprocess.run(["bash", str(script), str(self.folder)], timeout=timeout, check=True)

    def config(self) -> dict[str, Any]:
        """What a container engine would be told: user, command, health check."""
        return json.loads(self.buildah("inspect", "--type", "image", "localhost/megatron-moo").stdout)[
            "Docker"
        ]["config"]

    def run(self, *command: str, timeout: float = 900) -> subprocess.CompletedProcess:
        """A command as the image's user in a container of its own, which is removed afterwards."""
        name = self.buildah("from", "localhost/megatron-moo").stdout.strip()
        try:
            inside = (
                "run",
                "--isolation",
                "chroot",
                "--env",
                "COLUMNS=100",
                "--env",
                "OMP_NUM_THREADS=1",
                name,
                "--",
            )
            return self.buildah(*inside, *command, timeout=timeout, check=False)
        finally:
            self.buildah("rm", name)

    def buildah(self, *words: str, timeout: float = 300, check: bool = True) -> subprocess.CompletedProcess:
        command = ["buildah", *self._options, *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=check)


def shown(image: Image) -> str:
    """What the page shows: image, `doctor` and the quickstart's output."""
    size = image.buildah("images", "--format", "{{.Size}}", "localhost/megatron-moo").stdout.strip()
    doctor = image.run("megatron-moo", "doctor")
    train = image.run("megatron-moo", "train", QUICKSTART, "--train-iters", STEPS, timeout=1800)
    if doctor.returncode or train.returncode:
        raise SystemExit(doctor.stderr + train.stderr)
    parts = [f"The image takes {size}. `megatron-moo doctor` in it:", _block(doctor.stdout)]
    asked = f"megatron-moo train {QUICKSTART} --train-iters {STEPS}"
    parts += [f"What `make train` runs, for {STEPS} steps: `{asked}`", _block(train.stdout)]
    return "\n\n".join(parts)


def _block(text: str) -> str:
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line).rstrip() for line in text.splitlines()]
    return "\n".join(["```text", *[line for line in lines if line], "```"])


if __name__ == "__main__":
    found = Image(Path(sys.argv[1]))
    if "--built" not in sys.argv:
        found.build()
    head, rest = PAGE.read_text(encoding="utf-8").split(MARKS[0])
    middle = f"{MARKS[0]}\n\n{shown(found)}\n\n{MARKS[1]}"
    PAGE.write_text(head + middle + rest.split(MARKS[1])[1], encoding="utf-8")
