"""ValidationBatches: every language's validation set once per pass, shared out over the data-parallel
ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from megatron_moo.data.collate import collate
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.errors import MooError


class ValidationBatches:
    """Micro-batches of one rank; iterating never ends, one pass is ``len(self)`` micro-batches.

    Every target token of every language is scored exactly once per pass over all ranks. Micro-batches are of
    one language;
    missing rows, and the micro-batches that make all ranks equally long, have a loss mask of zero. A language that
    the corpus trains on and that has no validation text sits out.

    Args:
        sampler: of the valid split.
        tags: languages, seen then unseen; a batch's ``language`` is an index into them.
        dp_rank, dp_size: this rank among those that share the work.
        micro_batch_size: rows per micro-batch.
    """

    def __init__(
        self,
        sampler: LanguageSampler,
        tags: Sequence[str],
        dp_rank: int = 0,
        dp_size: int = 1,
        micro_batch_size: int = 1,
    ) -> None:
        if not 0 <= dp_rank < dp_size:
            raise MooError(f"rank {dp_rank} of {dp_size} does not exist")
        self.sampler, self.tags, self.micro_batch_size = sampler, list(tags), micro_batch_size
        entries = sampler.corpus.entries
        present = [
            (i, tag)
            for i, tag in enumerate(tags)
            if (tag, sampler.split) in entries or (tag, "train") not in entries
        ]
        if not present:
            raise MooError("no language to validate", todo="give valid: sources in the manifest")
        self._filler = present[0][0]
        plan = [
            (index, first)
            for index, tag in present
            for first in range(0, sampler.samples(tag), micro_batch_size)
        ]
        self._length = -(-len(plan) // dp_size)
        own: list[tuple[int, int] | None] = [*plan[dp_rank::dp_size]]
        self._plan = own + [None] * (self._length - len(own))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            for item in self._plan:
                yield self._batch(item)

    def _batch(self, item: tuple[int, int] | None) -> dict[str, Any]:
        language, first = item or (self._filler, self.sampler.samples(self.tags[self._filler]))
        tag = self.tags[language]
        count = min(self.micro_batch_size, self.sampler.samples(tag) - first)
        rows = [self.sampler.sample(tag, first + i) for i in range(count)]
        pad = {k: v.copy() for k, v in (rows[0] if rows else self.sampler.sample(tag, 0)).items()}
        pad["loss_mask"][:] = 0.0
        batch = collate(rows + [pad] * (self.micro_batch_size - count))
        batch["language"] = language
        return batch

    def targets(self, tag: str) -> int:
        """Target tokens of a language in one pass."""
        return self.sampler.view(tag).targets
