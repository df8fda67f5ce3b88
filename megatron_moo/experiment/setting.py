"""What all cells share: model, data sizes, steps, learning-rate schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

SEEN = ("en", "fr", "de", "ru", "el", "ko")
UNSEEN = ("it", "pl", "vi")


@dataclass(frozen=True)
class Setting:
    """A byte-level GPT and its training run; the flags of a recipe with the same names.

    Attributes:
        micro_batch: sequences per language and step.
        warmup: share of the steps in which the learning rate rises.
        min_lr: share of the peak at which the cosine ends.
        measure_every: steps between two measurements of conflict and noise floor.
        valid_windows: held-out sequences per language; even ones tune, odd ones are reported.
        train_bytes: cap on a language's training text, so that languages differ in size as they do in life.
        rare: a language and its share of a step's tokens, or None for equal shares. It is then there in some steps
            only, with one sequence (a language per lane) or as the law of the corpus draws it (mixed batches).
    """

    layers: int = 3
    hidden: int = 64
    ffn: int = 176
    heads: int = 4
    seq: int = 48
    micro_batch: int = 4
    steps: int = 300
    warmup: float = 0.05
    min_lr: float = 0.1
    weight_decay: float = 0.1
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    measure_every: int = 10
    valid_windows: int = 160
    train_bytes: dict[str, int] = field(
        default_factory=lambda: {
            "en": 800_000, "fr": 400_000, "de": 400_000, "ru": 200_000, "el": 100_000, "ko": 50_000
        }
    )  # fmt: skip
    rare: tuple[str, float] | None = None

    def rare_sequences(self, step: int) -> int:
        """Sequences of the rare language in a step, so that its share of all tokens is the one asked for."""
        assert self.rare is not None
        each = self.rare[1] / (1.0 - self.rare[1]) * (len(SEEN) - 1) * self.micro_batch
        return int((step + 1) * each) - int(step * each)

    @property
    def tokens_per_step(self) -> int:
        return len(SEEN) * self.micro_batch * self.seq

    def parameters(self, vocab: int = 260) -> int:
        """Values of the model: tied embedding (padded vocabulary), attention, SwiGLU and norms."""
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.ffn + 2 * self.hidden
        return vocab * self.hidden + self.layers * layer + self.hidden

    def lr(self, peak: float, step: int) -> float:
        """Megatron's schedule (linear warm-up from 0, cosine) at a step counted from 0."""
        rise = self.warmup * self.steps
        if step <= rise and rise > 0:
            return peak * step / rise
        low = self.min_lr * peak
        return low + (peak - low) * 0.5 * (math.cos(math.pi * (step - rise) / (self.steps - rise)) + 1.0)

    def recipe(self) -> dict[str, Any]:
        """The same as keys of a recipe (``lr``, ``min-lr``, ``languages`` and ``moo-…`` apart)."""
        return {
            "num-layers": self.layers,
            "hidden-size": self.hidden,
            "ffn-hidden-size": self.ffn,
            "num-attention-heads": self.heads,
            "seq-length": self.seq,
            "max-position-embeddings": self.seq,
            "position-embedding-type": "rope",
            "normalization": "RMSNorm",
            "swiglu": True,
            "disable-bias-linear": True,
            "attention-dropout": 0.0,
            "hidden-dropout": 0.0,
            "make-vocab-size-divisible-by": 4,
            "micro-batch-size": self.micro_batch,
            "train-iters": self.steps,
            "lr-warmup-fraction": self.warmup,
            "lr-decay-style": "cosine",
            "weight-decay": self.weight_decay,
            "clip-grad": self.clip,
            "adam-beta1": self.beta1,
            "adam-beta2": self.beta2,
            "adam-eps": self.eps,
        }
