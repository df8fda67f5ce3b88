"""The Dockerfile, built without a container engine on a Debian base, and what runs inside (slow).

``MOO_CONTAINER_FOLDER`` keeps the image from one run of this test to the next.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.container import page

pytestmark = [pytest.mark.slow]
WHY = page.missing(Path(tempfile.gettempdir()))


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[page.Image]:
    kept = os.environ.get("MOO_CONTAINER_FOLDER")
    found = page.Image(Path(kept) if kept else tmp_path_factory.mktemp("image"))
    found.build()
    yield found
    if not kept:
        found.buildah("rmi", "--all", "--force")


@pytest.mark.skipif(WHY is not None, reason=str(WHY))
@pytest.mark.timeout(3600)
def test_the_image_trains_as_another_user_than_root(image: page.Image) -> None:
    who = image.run(
        "sh", "-c", "id -u; pwd; ls /opt/megatron_moo; test -w /opt/megatron_moo || echo read-only"
    )
    assert who.stdout.splitlines()[:2] == ["10001", "/workspace"], who.stderr
    assert "tests" not in who.stdout and ".git" not in who.stdout and "read-only" in who.stdout
    doctor = image.run("megatron-moo", "doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "A run here will use: platform cpu, backend gloo, layer spec local" in doctor.stdout
    # The same as `make train`, with fewer steps; docs/container.md shows all of them.
    train = image.run(
        "megatron-moo", "train", page.QUICKSTART, "--train-iters", "10", "--run-dir", "run", timeout=1200
    )
    assert train.returncode == 0, train.stderr
    assert "held-out" in train.stdout and "14 languages" in train.stdout


@pytest.mark.skipif(WHY is not None, reason=str(WHY))
@pytest.mark.timeout(3600)
def test_the_health_check_is_the_doctor(image: page.Image) -> None:
    config = image.config()
    assert config["Healthcheck"]["Test"] == ["CMD", "megatron-moo", "doctor"]
    assert (config["User"], config["Entrypoint"], config["WorkingDir"]) == (
        "10001",
        ["megatron-moo"],
        "/workspace",
    )
