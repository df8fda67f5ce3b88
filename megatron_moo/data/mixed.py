"""Plain mixing: languages mixed inside micro-batches, the standard baseline, from the same manifest and
sampler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron_moo.data.collate import collate
from megatron_moo.data.manifest import Manifest
from megatron_moo.data.permutation import stable_hash
from megatron_moo.data.quota import draw, normalise, sequence_key
from megatron_moo.data.resume import restore, stream_identity
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.data.shares import Shares, drawn_report, plan_shares
from megatron_moo.errors import MooError


class MixedBatches:
    """Endless micro-batches of one data-parallel rank in which every row is drawn by the law on its own.

    The samples of a step depend on (seed, law, step, samples per step) only, not on how ranks and
    micro-batches share them.

    Args:
        sampler: of the train split.
        manifest: languages and law.
        rank, ranks: this data-parallel rank.
        micro_batch_size: rows of a micro-batch.
        micro_batches: micro-batches per rank and step.
        seed: of the order of languages.
        shares: from ``plan_shares(..., "law")``; None: planned here.
    """

    def __init__(
        self,
        sampler: LanguageSampler,
        manifest: Manifest,
        rank: int = 0,
        ranks: int = 1,
        micro_batch_size: int = 1,
        micro_batches: int = 1,
        seed: int = 0,
        shares: Shares | None = None,
    ) -> None:
        if not 0 <= rank < ranks:
            raise MooError(f"rank {rank} of {ranks} does not exist")
        self.sampler, self.manifest = sampler, manifest
        self.rank, self.micro_batch_size, self.micro_batches = rank, micro_batch_size, micro_batches
        self.per_step = ranks * micro_batches * micro_batch_size
        self.shares = shares or plan_shares(manifest, sampler, "law")
        self._tags = list(manifest.languages)
        self._positions = normalise([self.shares.positions[tag] for tag in self._tags])
        self._key = sequence_key(seed, "mixed")
        self._step = self._law_began = 0
        self._consumed = dict.fromkeys(self._tags, 0)
        self._before_law = dict.fromkeys(self._tags, 0)
        self._retired: dict[str, int] = {}
        self._streams = {tag: stream_identity(sampler, tag) for tag in self._tags}
        self._retired_streams: dict[str, Any] = {}
        self.begun_anew = ""  # the line about languages whose text changed before a loaded state went on

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """tokens, labels, loss_mask, position_ids [micro_batch_size, seq] and ``language`` int64
        [micro_batch_size]."""
        import torch

        while True:
            rows, consumed = self._plan()
            size = self.micro_batch_size
            for start in range(0, len(rows), size):
                part = rows[start : start + size]
                batch = collate([self.sampler.sample(self._tags[language], n) for language, n in part])
                batch["language"] = torch.tensor([language for language, _ in part])
                if start + size >= len(rows):
                    self._consumed, self._step = consumed, self._step + 1
                yield batch

    def _plan(self) -> tuple[list[tuple[int, int]], dict[str, int]]:
        """(language, consumed) of this rank's rows of the present step, and the counters after it."""
        consumed, rows = dict(self._consumed), []
        first = (self._step - self._law_began) * self.per_step
        for i in range(self.per_step):
            language = draw(self._positions, self._key, first + i)
            rows.append((language, consumed[self._tags[language]]))
            consumed[self._tags[language]] += 1
        own = self.micro_batches * self.micro_batch_size
        return rows[self.rank * own : (self.rank + 1) * own], consumed

    def _fingerprint(self) -> str:
        shares = [f"{share:.12g}" for share in self._positions]
        return f"{stable_hash(self._key, self.per_step, *self._tags, *shares):016x}"

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, as of the last finished step; equal on all ranks."""
        consumed = {**self._retired, **self._consumed}
        return {
            "step": self._step,
            "consumed": consumed,
            "law": self._fingerprint(),
            "law_began": self._law_began,
            "before_law": dict(self._before_law),
            "streams": {**self._retired_streams, **self._streams},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue; under another law, batch size or set of languages the law begins anew and the counters
        go on, except those of a language whose text changed: it begins anew, with a line that says so."""
        self._step = int(state["step"])
        found = restore(state, self._tags, self._streams, tell=self.rank == 0)
        self._consumed, self._retired = found.consumed, found.retired
        self._retired_streams, self.begun_anew = found.retired_streams, found.note
        if state.get("law") == self._fingerprint():
            self._law_began = int(state["law_began"])
            before = state.get("before_law", {})
            self._before_law = {tag: int(before.get(tag, 0)) for tag in self._tags}
        else:
            self._law_began, self._before_law = self._step, dict(self._consumed)
        if found.changed:  # shares are told of what all languages drew since
            self._before_law = dict(self._consumed)

    def drawn(self) -> dict[str, int]:
        """Samples drawn per language over all ranks, as of the last finished step."""
        return dict(self._consumed)

    def report(self) -> dict[str, dict[str, float]]:
        """Asked against drawn per language since the present law began: see ``shares.drawn_report``."""
        expected = dict(zip(self._tags, self._positions, strict=True))
        return drawn_report(self.sampler, self.shares, expected, self._consumed, self._before_law)
