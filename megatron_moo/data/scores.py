"""Validation scores from summed losses: nats per token, bits per byte, macro average, worst language, early
stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Scores:
    """Scores of one validation pass.

    Attributes:
        loss: nats per target token, per language.
        bits_per_byte: per language; comparable between tokenizers and models, not between scripts.
        macro: mean of bits_per_byte over the languages that are trained on, each counted once.
        worst: the one of them with the highest bits_per_byte.
        macro_unseen, worst_unseen: the same over the other languages; None without any.
    """

    loss: dict[str, float]
    bits_per_byte: dict[str, float]
    macro: float
    worst: str
    macro_unseen: float | None = None
    worst_unseen: str | None = None


def score(
    nats: Mapping[str, float],
    tokens: Mapping[str, float],
    text_bytes: Mapping[str, int],
    unseen: Sequence[str] = (),
) -> Scores:
    """Scores from summed losses.

    Args:
        nats: summed loss per language over one pass.
        tokens: scored targets per language.
        text_bytes: UTF-8 bytes of the text per language (``corpus.bytes``). End-of-document targets count in
            the nats and have no bytes.
        unseen: those of the languages that are not trained on.

    Raises:
        MooError: no language, or one without tokens or bytes.
    """
    if not nats:
        raise MooError("no language was scored", "validation")
    for tag in nats:
        if not tokens[tag] or not text_bytes[tag]:
            raise MooError(f"language {tag!r} scored no tokens", "validation", "give it validation text")
    loss = {tag: nats[tag] / tokens[tag] for tag in nats}
    bits = {tag: nats[tag] / math.log(2) / text_bytes[tag] for tag in nats}
    seen = [tag for tag in nats if tag not in set(unseen)]
    return Scores(loss, bits, *_macro_and_worst(bits, seen), *_macro_and_worst(bits, unseen))


def _macro_and_worst(bits: Mapping[str, float], tags: Sequence[str]) -> tuple[Any, Any]:
    if not tags:
        return None, None
    # A NaN is the worst there is: max alone would skip over it.
    worst = max(tags, key=lambda tag: math.inf if math.isnan(bits[tag]) else bits[tag])
    return sum(bits[tag] for tag in tags) / len(tags), worst


_WATCHED = ("macro", "worst", "unseen")


@dataclass
class EarlyStopping:
    """Stop after ``patience`` validations without an improvement of more than ``least``.

    Args:
        watch: ``macro``, ``worst``, ``unseen`` (``macro`` of the languages that are not trained on), or a
            language tag.
        patience: validations without improvement that are allowed.
        least: improvement in bits per byte that counts.
        tags: when given, a ``watch`` that is none of them is refused at once.
    """

    watch: str = "macro"
    patience: int = 3
    least: float = 0.0
    tags: Sequence[str] | None = None
    best: float = field(default=math.inf, init=False)
    waited: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.tags is not None and self.watch not in (*_WATCHED, *self.tags):
            known = ", ".join([*_WATCHED, *self.tags])
            raise MooError(f"cannot watch {self.watch!r}", "--moo-early-stop", f"choose one of {known}")
        if self.patience < 1:
            raise MooError(f"{self.patience} validations", "--moo-patience", "give at least 1")

    def update(self, scores: Scores) -> bool:
        """Take in a validation; True: stop now."""
        value = self.value(scores)
        if value < self.best - self.least:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.exhausted

    def value(self, scores: Scores) -> float:
        """The watched number, in bits per byte; MooError when the pass did not score it."""
        if self.watch == "macro":
            return scores.macro
        if self.watch == "unseen":
            value = scores.macro_unseen
        else:
            value = scores.bits_per_byte.get(scores.worst if self.watch == "worst" else self.watch)
        if value is None:
            what = f"no validation text for {self.watch!r}, which is watched"
            raise MooError(what, "--moo-early-stop", "give it `valid` in the manifest, or watch another")
        return value

    @property
    def exhausted(self) -> bool:
        """Whether ``patience`` validations in a row brought nothing."""
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs."""
        return {
            "watch": self.watch,
            "best": self.best,
            "waited": self.waited,
            "tags": list(self.tags or ()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue counting; what another number reached, or this one over other languages, counts for nothing."""
        if state["watch"] == self.watch and state.get("tags") == list(self.tags or ()):
            self.best, self.waited = float(state["best"]), int(state["waited"])
