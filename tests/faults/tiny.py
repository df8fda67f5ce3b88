"""A tiny recipe, planned and trained on the pool's ranks: what ``megatron-moo train`` does, without its start-up."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.pool import RankPool

ROOT = Path(__file__).resolve().parents[2]
UDHR = ROOT / "examples" / "udhr"
TINY = """\
languages: languages.yaml
num-layers: 2
hidden-size: 32
ffn-hidden-size: 64
num-attention-heads: 2
seq-length: 32
micro-batch-size: 2
position-embedding-type: rope
normalization: RMSNorm
swiglu: true
disable-bias-linear: true
attention-dropout: 0.0
hidden-dropout: 0.0
lr: 1.0e-3
train-iters: 6
eval-interval: 1000
save-interval: 1000
"""


def write_recipe(folder: Path, tags: str = "el ko tr", extra: str = "") -> Path:
    """``tiny.yaml`` and its manifest."""
    lines = ["tokenizer: byte", "languages:"]
    lines += [
        f"  {tag}: {{train: [{UDHR}/train/{tag}.txt], valid: [{UDHR}/valid/{tag}.txt]}}"
        for tag in tags.split()
    ]
    (folder / "languages.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = folder / "tiny.yaml"
    recipe.write_text(TINY + extra, encoding="utf-8")
    return recipe


def plan_worker(rank: int, world: int, recipe: Path, flags: list[str], ranks: int) -> list[str]:
    """The command line that ``megatron-moo train`` gives to each of ``ranks`` ranks."""
    from megatron_moo.training.plan import plan_run
    from megatron_moo.training.recipe import load_recipe, to_argv

    os.environ["WORLD_SIZE"] = str(ranks)
    plan = plan_run(load_recipe(recipe, flags), recipe.parent / "runs", lambda _: None)
    return to_argv(plan.flags)


def train_worker(
    rank: int,
    world: int,
    argv: list[str],
    breaks: tuple[tuple[Any, ...], ...] = (),
    odd: Mapping[int, Sequence[str]] = MappingProxyType({}),
) -> int:
    """Be a rank of a run.

    Args:
        argv: its command line.
        breaks: functions of ``tests.faults.breaks`` with their arguments, called first.
        odd: what single ranks are told beside ``argv``.
    """
    from megatron_moo.training.main import main
    from tests.faults import breaks as functions

    for name, *args in breaks:
        getattr(functions, name)(*args)
    sys.argv = ["rank", *argv, *odd.get(rank, ())]
    try:
        return main()
    except SystemExit as ending:
        return ending.code if isinstance(ending.code, int) else int(ending.code is not None)


class Tiny:
    """Plans and trains in a folder."""

    def __init__(self, pool: RankPool, folder: Path, tags: str = "el ko tr", extra: str = "") -> None:
        self.pool, self.folder = pool, folder
        self.recipe = write_recipe(folder, tags, extra)

    def plan(self, name: str, *flags: str, ranks: int = 2) -> list[str]:
        """Claim the run folder ``name``; the command line of a rank."""
        told = ["--run-dir", str(self.folder / name), *flags]
        return self.pool.run(plan_worker, 1, self.recipe, told, ranks)[0]

    def train(
        self,
        argv: list[str],
        *breaks: tuple[Any, ...],
        ranks: int = 2,
        odd: Mapping[int, Sequence[str]] | None = None,
        timeout: float = 90,
    ) -> list[int]:
        """Exit status of each rank of a run (see :func:`train_worker`)."""
        return self.pool.run(train_worker, ranks, argv, breaks, odd or {}, timeout=timeout)

    def run(self, name: str, *flags: str, ranks: int = 2) -> Path:
        """Plan and train; the run folder."""
        assert self.train(self.plan(name, *flags, ranks=ranks), ranks=ranks) == [0] * ranks
        return self.folder / name


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Every record of a run that is whole; a killed one may leave half a line, which the next begins after."""
    found = []
    for line in (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]:
        found.append(json.loads(line[max(0, line.rfind(b'{"step":'), line.rfind(b'{"event":')) :]))
    return found


def steps_of(run: Path) -> dict[int, dict[str, Any]]:
    """The last record of every step."""
    return {line["step"]: line for line in lines_of(run) if "event" not in line}


def events_of(run: Path, name: str) -> list[dict[str, Any]]:
    """The events of a name."""
    return [line for line in lines_of(run) if line.get("event") == name]


def losses_of(run: Path) -> dict[int, dict[str, float]]:
    """Loss per language of every step."""
    return {step: line["loss"] for step, line in steps_of(run).items()}


def tensors_worker(rank: int, world: int, checkpoint: Path) -> dict[str, Any]:
    """Every tensor of a checkpoint, by its key."""
    import torch
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
    from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

    state: dict[str, Any] = {}
    _load_state_dict(
        state, storage_reader=FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True
    )
    flat: dict[str, Any] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, torch.Tensor):
            flat[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")

    walk(state, "")
    return flat
