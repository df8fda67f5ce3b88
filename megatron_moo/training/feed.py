"""What a run draws: batches from the manifest's languages, the shares asked and drawn, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_moo.data import (
    Corpus,
    LaneBatches,
    LaneSchedule,
    LanguageSampler,
    Manifest,
    MixedBatches,
    ValidationBatches,
    expected_positions,
    plan_shares,
    small_language_notes,
)
from megatron_moo.data.manifest import manifest_notes
from megatron_moo.errors import MooError


def check_places(what: str, earlier: int, places: int, asked_for: bool) -> None:
    """Refuse another L = slots x lanes than the run had, unless it is asked for: it is another order of objectives.

    Args:
        what: its run folder or checkpoints.

    Raises:
        MooError: naming both numbers.
    """
    if places and earlier and places != earlier and not asked_for:
        raise MooError(
            f"its run has {earlier} places a step (slots x lanes), these settings have {places}: which objective comes "
            "when would begin anew",
            what,
            f"choose ranks and slots that make {earlier}, or ask for it with --moo-other-places",
        )


class Feed:
    """The data side of a run, the same on every rank.

    It is also the step's schedule: :meth:`assignment` counts from where the present law began, as the batches do.

    Args:
        args: Megatron's arguments with ours; ``global_batch_size`` and ``train_iters`` are set.
        manifest: languages and law.
        corpus: the manifest, built.
        lanes, slots: D and S.
    """

    def __init__(self, args: Any, manifest: Manifest, corpus: Corpus, lanes: int, slots: int) -> None:
        self.manifest, self.corpus = manifest, corpus
        self.mixed, self._lanes, self._seed = bool(args.moo_mixed), lanes, int(args.seed)
        self._rows = (int(args.global_batch_size), int(args.micro_batch_size))
        self._length = int(args.seq_length)
        samples = int(args.train_iters or 0) * self._rows[0]
        self.sampler = LanguageSampler(corpus, "train", self._length, self._seed)
        presence = "law" if self.mixed else args.moo_presence
        budget = samples * self._length or None
        self.shares = plan_shares(manifest, self.sampler, presence, budget)
        objectives = self.shares.objectives
        self.schedule = LaneSchedule(
            len(objectives), lanes, slots, self._seed, presence, objectives, args.moo_lane_group
        )
        draws = (
            self.shares.positions if self.mixed else expected_positions(manifest, self.shares, self.schedule)
        )
        self.notes = manifest_notes(manifest) + small_language_notes(manifest, self.sampler, draws, samples)
        self.batches: LaneBatches | MixedBatches | None = None
        self._restored: Mapping[str, Any] | None = None

    def assignment(self, step: int) -> list[list[int]]:
        """Objective index ``[slots][lanes]`` of a training step (counted from 0)."""
        began = self.batches.law_began if isinstance(self.batches, LaneBatches) else 0
        return self.schedule.assignment(step - began)

    def train(self, rank: int, ranks: int, lane: int, peer: int, peers: int) -> LaneBatches | MixedBatches:
        """This rank's batches, where the checkpoint left them.

        Args:
            rank, ranks: this data-parallel rank.
            lane, peer, peers: its lane, and its place among the ranks that share one.
        """
        batches: LaneBatches | MixedBatches
        whole, rows = self._rows
        if self.mixed:
            batches = MixedBatches(
                self.sampler,
                self.manifest,
                rank,
                ranks,
                rows,
                whole // (rows * ranks),
                self._seed,
                self.shares,
            )
        else:
            batches = LaneBatches(
                self.sampler,
                self.schedule,
                self.manifest,
                lane=lane,
                peer=peer,
                peers=peers,
                micro_batch_size=rows,
                micro_batches=whole // (rows * ranks * self.schedule.slots) * peers,
                seed=self._seed,
                shares=self.shares,
            )
        if self._restored is not None:
            batches.load_state_dict(self._restored)
        self.batches = batches
        return batches

    def valid(self, rank: int, ranks: int) -> ValidationBatches:
        """This rank's part of a validation pass over all languages, seen and unseen, that have validation text.

        Raises:
            MooError: none of the languages that are trained on has any.
        """
        if not any(language.valid for language in self.manifest.languages.values()):
            what = "no language that is trained on has `valid`"
            raise MooError(what, str(self.manifest.path), "give at least one of them validation text")
        sampler = LanguageSampler(self.corpus, "valid", self._length, self._seed)
        tags = (*self.manifest.languages, *self.manifest.unseen)
        return ValidationBatches(sampler, tags, rank, ranks, self._rows[1])

    def drawn(self) -> dict[str, int]:
        """Samples drawn per language since training began."""
        return {} if self.batches is None else self.batches.drawn()

    def report(self) -> dict[str, Any]:
        """Fields of the metrics' ``drawn`` event: how languages come, and asked against drawn for each."""
        if self.batches is None:
            raise MooError("no batch was drawn yet", "training")
        presence = "mixed" if self.mixed else self.schedule.presence
        return {"presence": presence, "languages": self.batches.report()}

    def state_dict(self) -> dict[str, Any] | None:
        """What a resume needs, equal on all ranks."""
        return None if self.batches is None else self.batches.state_dict()

    def check_places(self, state: Mapping[str, Any], checkpoint: str, asked_for: bool) -> None:
        """Refuse another number of places than the checkpoint's run had, also where no plan was made before.

        Raises:
            MooError: unless it was ``asked_for`` (``--moo-other-places``).
        """
        earlier = int(state.get("L") or 0)
        if not self.mixed and earlier:
            check_places(checkpoint, earlier, self.schedule.positions, asked_for)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue there: the next :meth:`train` does."""
        self._restored = state
