"""Made-up runs of two recipes over common seeds, as the trainer would write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.unit.report.fake_run import FakeRun

VERSIONS = {"megatron-core": "0.19.2", "torch": "2.13.0"}


def write_pairs(
    folder: Path, methods: Sequence[str] = ("mean", "cagrad"), seeds: Sequence[int] = (1, 2, 3), **words: Any
) -> list[Path]:
    """Run folders ``METHOD-SEED``; losses differ by method and seed, tokens do not."""
    found = []
    for number, method in enumerate(methods):
        for seed in seeds:
            run = folder / f"{method}-{seed}"
            FakeRun(seed=100 * number + seed, **{"steps": 20, **words}).write(run)
            flags = {
                "seed": seed,
                "run-dir": str(run),
                "languages": "m.yaml",
                "lr": 1e-3,
                "moo-method": method,
            }
            (run / "recipe.yaml").write_text(yaml.safe_dump({"versions": VERSIONS, "flags": flags}))
            found.append(run)
    return found
