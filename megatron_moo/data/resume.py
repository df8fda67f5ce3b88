"""What a resume finds again: whether a language's samples are still those that its counter counted."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_moo.data.sampler import LanguageSampler

logger = logging.getLogger(__name__)
_WORDS = {"text": "another text", "samples": "another number of samples", "seed": "another seed"}


def stream_identity(sampler: LanguageSampler, tag: str) -> dict[str, Any]:
    """``text`` (hash of the token files), ``samples`` of an epoch and ``seed``: what sample number n depends on."""
    parts = sampler.corpus.entry(tag, sampler.split).parts
    sums = "\n".join(f"{part.bin.sha256} {part.idx.sha256}" for part in parts)
    text = hashlib.sha256(sums.encode()).hexdigest()[:16]
    return {"text": text, "samples": sampler.samples(tag), "seed": sampler.seed}


@dataclass
class Restored:
    """Counters of a resumed run.

    Attributes:
        consumed: of the languages there are.
        retired, retired_streams: counters and identities of languages that were taken out.
        changed: languages whose counter began anew.
        note: the line that says so, or nothing.
    """

    consumed: dict[str, int]
    retired: dict[str, int]
    retired_streams: dict[str, Any]
    changed: list[str] = field(default_factory=list)
    note: str = ""


def restore(
    state: Mapping[str, Any], tags: Sequence[str], streams: Mapping[str, Mapping[str, Any]], tell: bool
) -> Restored:
    """Counters from a state; a language whose samples are no longer those that were counted begins at sample 0.

    Args:
        state: with ``consumed`` and, since it is kept, ``streams``; a language without an identity goes on.
        tags, streams: languages of this run and their identities.
        tell: whether this rank logs one line about what begins anew.
    """
    consumed = {str(tag): int(n) for tag, n in state["consumed"].items()}
    before = {str(tag): dict(one) for tag, one in (state.get("streams") or {}).items()}
    found = Restored({tag: consumed.pop(tag, 0) for tag in tags}, consumed, {})
    reasons = []
    for tag in tags:
        old = before.pop(tag, streams[tag])
        if found.consumed[tag] and old != streams[tag]:
            found.consumed[tag] = 0
            found.changed.append(tag)
            words = [text for key, text in _WORDS.items() if old.get(key) != streams[tag][key]]
            reasons.append(f"{tag} ({', '.join(words)})")
    found.retired_streams = before
    if reasons:
        found.note = (
            f"not the samples that the checkpoint counted, an epoch begins anew: {'; '.join(reasons)}"
        )
        if tell:
            logger.warning("%s", found.note)
    return found
