"""Logits of a converted checkpoint at a layout beside those of transformers: for the tests and for docs/families.md."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from megatron_moo.convert.importer import import_checkpoint
from tests.distributed.convert_ranks import logits_worker
from tests.distributed.convert_zoo import Layout, Tiny, make, tokens
from tests.pool import RankPool


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        gap: largest absolute difference of a logit.
        largest: largest absolute logit of transformers.
        padding_is_silent: whether rows that only pad have finite logits and no probability.
    """

    gap: float
    largest: float
    padding_is_silent: bool


def compare_logits(pool: RankPool, folder: Path, tiny: Tiny, layout: Layout) -> Compared:
    """Write a tiny checkpoint into ``folder``, import it, load it at a layout and compare."""
    reference = make(tiny, folder / "hf")
    if not (folder / "megatron").exists():
        import_checkpoint(folder / "hf", folder / "megatron")
    ids = tokens()
    with torch.no_grad():
        wanted = reference(torch.tensor([ids])).logits[0]
    found = pool.run(
        logits_worker, layout.ranks, folder / "megatron", layout.tp, layout.pp, ids, layout.cp, **layout.flags
    )[-1]
    vocab = reference.config.vocab_size
    probabilities = found.softmax(-1)
    silent = bool(probabilities.isfinite().all()) and bool((probabilities[:, vocab:] == 0).all())
    return Compared(float((found[:, :vocab] - wanted).abs().max()), float(wanted.abs().max()), silent)
