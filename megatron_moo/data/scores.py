"""Validation scores from summed losses: nats per token, bits per byte, macro average, worst language, early
stopping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Scores:
    """Scores of one validation pass.

    Attributes:
        loss: nats per target token, per language.
        bits_per_byte: per language; comparable between languages and tokenizers.
        macro: mean of bits_per_byte over the languages, each counted once.
        worst: the language with the highest bits_per_byte.
    """

    loss: dict[str, float]
    bits_per_byte: dict[str, float]
    macro: float
    worst: str


def score(nats: Mapping[str, float], tokens: Mapping[str, float], text_bytes: Mapping[str, int]) -> Scores:
    """Scores from summed losses.

    Args:
        nats: summed loss per language over one pass.
        tokens: scored targets per language.
        text_bytes: UTF-8 bytes of the text per language (``corpus.bytes``). End-of-document targets count in
            the nats and have no bytes.

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
    # A NaN is the worst there is: max alone would skip over it.
    worst = max(bits, key=lambda tag: math.inf if math.isnan(bits[tag]) else bits[tag])
    return Scores(loss, bits, sum(bits.values()) / len(bits), worst)


@dataclass
class EarlyStopping:
    """Stop after ``patience`` validations without an improvement of more than ``least``.

    Args:
        watch: ``macro``, ``worst``, or a language tag.
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
        if self.tags is not None and self.watch not in ("macro", "worst", *self.tags):
            known = ", ".join(["macro", "worst", *self.tags])
            raise MooError(f"cannot watch {self.watch!r}", "early stopping", f"choose one of {known}")

    def update(self, scores: Scores) -> bool:
        """Take in a validation; True: stop now."""
        if self.watch == "macro":
            value = scores.macro
        elif self.watch == "worst":
            value = scores.bits_per_byte[scores.worst]
        else:
            value = scores.bits_per_byte[self.watch]
        if value < self.best - self.least:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, float]:
        """What a resume needs."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue counting."""
        self.best, self.waited = float(state["best"]), int(state["waited"])
