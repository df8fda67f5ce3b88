"""One paired run as data, and how to start its ranks."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Megatron's own ways to reduce, and the two that keep whole gradients in one process. Everything else is
# ours: METHOD[/BLOCK[/DTYPE OF KEPT ROWS]].
STOCK = ("plain", "fp32acc")
ALONE = ("naive", "torchjd")
SIZES = {"small": (6, 256, 704), "medium": (8, 512, 1408), "large": (8, 768, 2048), "tied": (4, 768, 2048)}
TIED_VOCAB = 40_000
_LIMIT_S = 3000


@dataclass(frozen=True)
class Setup:
    """Which variants take turns, on what model and layout.

    Attributes:
        name: unique; names the file of raw results.
        dp: data-parallel ranks, also lanes.
        size: key of :data:`SIZES` (layers, hidden size, MLP size); the embedding of ``tied`` is the head too.
        pairs: measured turns of every variant.
        memory: measure the peak memory of the only variant instead of times.
    """

    name: str
    dp: int = 2
    objectives: int = 2
    slots: int = 1
    size: str = "medium"
    pairs: int = 30
    variants: tuple[str, ...] = ("plain", "fp32acc", "mgda", "cagrad")
    memory: bool = False

    @property
    def title(self) -> str:
        return f"DP {self.dp}, K {self.objectives}, slots {self.slots}, {self.size} model"

    @property
    def flags(self) -> tuple[str, ...]:
        """Megatron's flags of the model, with bucketed, overlapped gradient exchange."""
        layers, hidden, ffn = SIZES[self.size]
        return (
            *("--num-layers", str(layers), "--hidden-size", str(hidden), "--ffn-hidden-size", str(ffn)),
            *("--num-attention-heads", "8", "--seq-length", "128", "--max-position-embeddings", "128"),
            *("--overlap-grad-reduce", "--ddp-bucket-size", "3000000", "--log-interval", "1000000"),
            *self._embedding,
        )

    @property
    def _embedding(self) -> tuple[str, ...]:
        """One large embedding that is the head too makes a bucket far larger than the asked size."""
        if self.size == "tied":
            return ("--vocab-size", str(TIED_VOCAB))
        return ("--untie-embeddings-and-output-weights",)

    def dumps(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def loads(text: str) -> Setup:
        fields = json.loads(text)
        return Setup(**{**fields, "variants": tuple(fields["variants"])})


def launch(setup: Setup, script: Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    """Run ``script --setup`` on ``setup.dp`` ranks; returns what rank 0 measured.

    Raises:
        SystemExit: with the end of the ranks' standard error when they fail or take too long.
    """
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setup.dp}"),
        *(str(script), "--setup", setup.dumps()),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
    ranks = subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, errors = ranks.communicate(timeout=_LIMIT_S)
    finally:
        if ranks.poll() is None:
            os.killpg(ranks.pid, signal.SIGKILL)
    for line in output.splitlines():
        if line.startswith("RESULT "):
            result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
            return result
    raise SystemExit(f"{setup.name}: no result\n{errors[-3000:]}")


def run(setup: Setup, script: Path, memory: bool) -> dict[str, Any]:
    """Times of a setup, and with ``memory`` the memory of each variant in processes of its own."""
    from _measure import MALLOC

    load = os.getloadavg()[0]
    result = {"load": load, **launch(setup, script)}
    if memory:
        result["memory"] = {
            variant: launch(dataclasses.replace(setup, variants=(variant,), memory=True), script, MALLOC)[
                "memory"
            ]
            for variant in setup.variants
        }
    return {"setup": dataclasses.asdict(setup), **result}
