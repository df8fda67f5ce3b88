"""A validation pass over every language: summed losses in, an event of the metrics out, and whether to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_moo.data import Corpus, EarlyStopping, Scores, score
from megatron_moo.training.metrics import LossBook, MetricsWriter


def early_stopping(args: Any, tags: Sequence[str]) -> EarlyStopping | None:
    """What ``--moo-early-stop`` and ``--moo-patience`` ask for, or None.

    Raises:
        MooError: for something that cannot be watched, naming what can.
    """
    if args.moo_early_stop is None:
        return None
    return EarlyStopping(args.moo_early_stop, args.moo_patience, tags=tags)


class Evaluation:
    """Books validation losses and tells them.

    Args:
        corpus: for the bytes of every language.
        seen, unseen: tags in the order of the loss book.
        metrics: where the event goes.
        stopping: asked after every pass, or None.
    """

    def __init__(
        self,
        corpus: Corpus,
        seen: Sequence[str],
        unseen: Sequence[str],
        metrics: MetricsWriter,
        stopping: EarlyStopping | None,
    ) -> None:
        self.seen, self.unseen, self.metrics, self.stopping = tuple(seen), tuple(unseen), metrics, stopping
        held = set(corpus.tags("valid"))  # the others sit out: they have places in the book, and no score
        self._bytes = {tag: corpus.bytes(tag, "valid") if tag in held else 0 for tag in (*seen, *unseen)}
        self.book = LossBook(len(self._bytes))
        self._last = -1

    def finish(self, step: int) -> bool:
        """Tell the losses of the pass that ended. A collective call.

        Returns:
            whether this was a new step (Megatron validates once more after the last one).
        """
        sums = self.book.take(torch.device(torch.cuda.current_device()))
        dist.all_reduce(sums)
        if step == self._last:
            return False
        self._last = step
        nats, tokens = (dict(zip(self._bytes, column, strict=True)) for column in sums.T.tolist())
        nats = {tag: value for tag, value in nats.items() if self._bytes[tag]}
        scores = score(nats, tokens, self._bytes, self.unseen)
        seen = tuple(tag for tag in self.seen if tag in nats)
        self.metrics.event("valid", step=step, seen=seen, unseen=self.unseen, **_fields(scores))
        self.metrics.scalars(_scalars(scores), step)
        if self.stopping is not None:
            self.stopping.update(scores)
        return True

    def stop(self, step: int) -> bool:
        """Whether the run ends here for want of improvement; if so the metrics say why."""
        watched = self.stopping
        if watched is None or not watched.exhausted:
            return False
        self.metrics.event(
            "stopped",
            step=step,
            watch=watched.watch,
            patience=watched.patience,
            best=watched.best,
            tags=[*self.seen, *self.unseen],
        )
        return True


def _fields(scores: Scores) -> dict[str, Any]:
    return {
        "loss": scores.loss,
        "bits_per_byte": scores.bits_per_byte,
        "macro": {"seen": scores.macro, "unseen": scores.macro_unseen},
        "worst": {"seen": scores.worst, "unseen": scores.worst_unseen},
    }


def _scalars(scores: Scores) -> dict[str, float | None]:
    return {
        **{f"valid_loss/{tag}": loss for tag, loss in scores.loss.items()},
        **{f"valid_bits_per_byte/{tag}": bits for tag, bits in scores.bits_per_byte.items()},
        "valid/macro": scores.macro,
        "valid/worst": scores.bits_per_byte[scores.worst],
        "valid/macro_unseen": scores.macro_unseen,
    }
