"""Are all ranks of one run? Settings that differ are named at the start, not by a run that hangs or learns nonsense."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import megatron_moo
from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.errors import MooError

# A rank's own, or a path, which may differ between machines: the files behind it are compared.
_OWN = {
    "rank", "local_rank", "languages", "corpus", "run_dir", "save", "load", "tensorboard_dir", "data_cache_path",
    "pretrained_checkpoint",
}  # fmt: skip


def facts_of(args: Any, manifest: Any, corpus: Any) -> dict[str, str]:
    """What must be equal on all ranks, as text; what a user would look for first stands first."""
    content = hashlib.sha256(Path(args.languages).read_bytes()).hexdigest()
    facts = {
        "objectives": f"{len(manifest.objectives)}: {' '.join(manifest.objectives)}",
        "languages (SHA-256 of the manifest)": content[:16],
        "corpus (fingerprint)": str(corpus.fingerprint)[:16],
        "megatron_moo": megatron_moo.__version__,
        "torch": torch.__version__,
    }
    settings = {name: value for name, value in vars(args).items() if name not in _OWN and _plain(value)}
    ours = sorted(settings, key=lambda name: (not name.startswith("moo_"), name != "seed", name))
    return facts | {f"--{name.replace('_', '-')}": _text(settings[name]) for name in ours}


def bucket_facts(plans: Sequence[BucketPlan], blocks: Sequence[str]) -> dict[str, str]:
    """What ranks that exchange rows must agree on."""
    listed = json.dumps([[plan.name, plan.grad.numel(), plan.members, plan.shard] for plan in plans])
    return {
        "buckets": _short(f"{len(plans)} buckets", listed),
        "blocks": _short(f"{len(blocks)} blocks", *blocks),
    }


def check_same(facts: Mapping[str, str], group: str = "") -> None:
    """Compare ``facts`` between all ranks, or between those that give the same ``group``. A collective call.

    Only digests travel while all agree.

    Raises:
        MooError: on every rank, naming the first key that differs, its values and the ranks that have them.
    """
    world = dist.get_world_size()
    digest = hashlib.sha256(json.dumps(dict(facts)).encode()).hexdigest()
    digests: list[Any] = [None] * world
    dist.all_gather_object(digests, (group, digest))
    if len(set(digests)) == len({name for name, _ in digests}):
        return
    every: list[Any] = [None] * world
    dist.all_gather_object(every, dict(facts))
    for name in sorted({name for name, _ in digests}):
        members = [rank for rank in range(world) if digests[rank][0] == name]
        if (told := difference({rank: every[rank] for rank in members})) is not None:
            raise MooError(told, "start", "give every rank the same recipe, flags, files and versions")


def difference(facts: Mapping[int, Mapping[str, str]]) -> str | None:
    """The first key that ranks disagree on, in words; None when they agree."""
    keys = dict.fromkeys(key for one in facts.values() for key in one)
    for key in keys:
        ranks: dict[str, list[int]] = {}
        for rank, one in facts.items():
            ranks.setdefault(one.get(key, "not there"), []).append(rank)
        if len(ranks) > 1:
            told = [f"{value} on rank {_span(having)}" for value, having in ranks.items()]
            return f"the ranks disagree: {key} is {', '.join(told[:4])}"
    return None


def _span(ranks: Sequence[int]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return shown if len(ranks) <= 8 else f"{shown} and {len(ranks) - 8} more"


def _plain(value: Any) -> bool:
    """Whether a value says the same in every process; the text of an object may hold its address."""
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, str | int | float | bool | torch.dtype)


def _text(value: Any) -> str:
    text = " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return (text or "nothing") if len(text) <= 60 else _short(text[:40], text)


def _short(words: str, *content: str) -> str:
    return f"{words} ({hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]})"
