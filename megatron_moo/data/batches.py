"""LaneBatches: the language-homogeneous micro-batches of one lane, and the counters that make a resume
exact."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from megatron_moo.data.collate import collate
from megatron_moo.data.manifest import Manifest
from megatron_moo.data.permutation import stable_hash
from megatron_moo.data.quota import draw, normalise, sequence_key
from megatron_moo.data.resume import restore, stream_identity
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.data.schedule import LaneSchedule
from megatron_moo.data.shares import Shares, drawn_report, expected_positions, plan_shares
from megatron_moo.errors import MooError


class LaneBatches:
    """Endless micro-batches of one lane.

    Inside a step the order is slot-major, then micro-batch. Every rank walks through the whole schedule, not
    only its own
    lane, so the per-language ``consumed`` counters are global and equal on all ranks, and a sample's
    identity depends only
    on (language, consumed): with the same L = slots * lanes the samples of a step are the same at any split.

    Args:
        sampler: of the train split.
        schedule: objectives per position.
        manifest: languages and their objectives.
        lane: which of the schedule's lanes this is.
        peer, peers: ranks of one lane that share its micro-batches: micro-batch i goes to peer i % peers.
        micro_batch_size: samples per micro-batch.
        micro_batches: micro-batches per slot and lane, all peers together.
        seed: of the order of languages inside an objective.
        start_step: training step at which the law begins (a loaded state overrides it).
        shares: from ``plan_shares``; None: planned here from the manifest.
    """

    def __init__(
        self,
        sampler: LanguageSampler,
        schedule: LaneSchedule,
        manifest: Manifest,
        lane: int = 0,
        peer: int = 0,
        peers: int = 1,
        micro_batch_size: int = 1,
        micro_batches: int = 1,
        seed: int = 0,
        start_step: int = 0,
        shares: Shares | None = None,
    ) -> None:
        if not 0 <= lane < schedule.lanes or not 0 <= peer < peers:
            raise MooError(f"lane {lane} of {schedule.lanes}, peer {peer} of {peers} do not exist")
        if micro_batches % peers:
            raise MooError(f"{micro_batches} micro-batches cannot be shared by {peers} peers evenly")
        if schedule.objectives != len(manifest.objectives):
            raise MooError(
                f"a schedule of {schedule.objectives} objectives for a manifest of {len(manifest.objectives)}"
            )
        self.sampler, self.schedule, self.manifest = sampler, schedule, manifest
        self.lane, self.peer, self.peers = lane, peer, peers
        self.micro_batch_size, self.micro_batches, self.seed = micro_batch_size, micro_batches, seed
        self.shares = shares or plan_shares(manifest, sampler, schedule.presence)
        self._tags = list(manifest.languages)
        self._members = _members(manifest, self.shares)
        self._step, self._law_began = start_step, start_step
        self._consumed = dict.fromkeys(self._tags, 0)
        self._before_law = dict.fromkeys(self._tags, 0)
        self._turns = dict.fromkeys(manifest.objectives, 0)
        self._retired: dict[str, int] = {}
        self._streams = {tag: stream_identity(sampler, tag) for tag in self._tags}
        self._retired_streams: dict[str, Any] = {}
        self.begun_anew = ""  # the line about languages whose text changed before a loaded state went on
        self._queue: deque[tuple[int, int, int]] = deque()
        self._after: tuple[dict[str, int], dict[str, int]] = (self._consumed, self._turns)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        """tokens, labels, loss_mask, position_ids [micro_batch_size, seq], ``language`` and ``objective``
        (int)."""
        if not self._queue:
            self._queue.extend(self._plan())
        language, objective, first = self._queue.popleft()
        tag = self._tags[language]
        batch = collate([self.sampler.sample(tag, first + i) for i in range(self.micro_batch_size)])
        batch["language"], batch["objective"] = language, objective
        if not self._queue:
            self._consumed, self._turns = self._after
            self._step += 1
        return batch

    def _plan(self) -> list[tuple[int, int, int]]:
        """Walk one whole step; (language, objective, first consumed) of each of our own micro-batches."""
        consumed, turns = dict(self._consumed), dict(self._turns)
        own = []
        for position, objective in enumerate(self.schedule.flat(self._step - self._law_began)):
            name = self.manifest.objectives[objective]
            for micro_batch in range(self.micro_batches):
                language = self._language(name, turns[name])
                turns[name] += 1
                tag = self._tags[language]
                if position % self.schedule.lanes == self.lane and micro_batch % self.peers == self.peer:
                    own.append((language, objective, consumed[tag]))
                consumed[tag] += self.micro_batch_size
        self._after = (consumed, turns)
        return own

    def _language(self, objective: str, turn: int) -> int:
        languages, shares, key = self._members[objective]
        return languages[draw(shares, sequence_key(self.seed, "language", key), turn)]

    def law_fingerprint(self) -> str:
        """What decides which language comes when; a resume under another law restarts its count of steps and
        turns."""
        members = [(name, languages, shares) for name, (languages, shares, _) in self._members.items()]
        text = [
            f"{name}:{[(self._tags[i], f'{s:.12g}') for i, s in zip(ls, ss, strict=True)]}"
            for name, ls, ss in members
        ]
        return f"{stable_hash(self.schedule.fingerprint(), self.micro_batches, self.seed, *text):016x}"

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, as of the last finished step; equal on all ranks, whatever the layout."""
        return {
            "step": self._step,
            "consumed": {**self._retired, **self._consumed},
            "L": self.schedule.positions,
            "turns": dict(self._turns),
            "law": self.law_fingerprint(),
            "law_began": self._law_began,
            "before_law": dict(self._before_law),
            "streams": {**self._retired_streams, **self._streams},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a run, also at another layout, law, or with languages added or removed.

        Consumed samples are kept per language: one that was taken out keeps its count in the state and
            continues if it comes
        back; a new one starts at 0, and so does one whose text changed, with a line that says so. When the law
        differs from the stored one, it begins at the stored step.
        """
        self._queue.clear()
        self._step = int(state["step"])
        found = restore(state, self._tags, self._streams, tell=self.lane == self.peer == 0)
        self._consumed, self._retired = found.consumed, found.retired
        self._retired_streams, self.begun_anew = found.retired_streams, found.note
        if state.get("law") == self.law_fingerprint():
            self._law_began = int(state["law_began"])
            self._turns = {name: int(state["turns"][name]) for name in self.manifest.objectives}
            before = state.get("before_law", {})
            self._before_law = {tag: int(before.get(tag, 0)) for tag in self._tags}
        else:
            self._law_began, self._before_law = self._step, dict(self._consumed)
            self._turns = dict.fromkeys(self.manifest.objectives, 0)
        if found.changed:  # shares are told of what all languages drew since
            self._before_law = dict(self._consumed)

    @property
    def step(self) -> int:
        """Steps finished since training began."""
        return self._step

    @property
    def law_began(self) -> int:
        """Step at which the present law began: the schedule counts from there."""
        return self._law_began

    def drawn(self) -> dict[str, int]:
        """Samples drawn per language, over all ranks, as of the last finished step."""
        return dict(self._consumed)

    def report(self) -> dict[str, dict[str, float]]:
        """Asked against drawn per language since the present law began: see ``shares.drawn_report``."""
        expected = expected_positions(self.manifest, self.shares, self.schedule)
        return drawn_report(self.sampler, self.shares, expected, self._consumed, self._before_law)


def _members(manifest: Manifest, shares: Shares) -> dict[str, tuple[list[int], tuple[float, ...], str]]:
    """Per objective: its languages (indices), their shares of its micro-batches, and a key for the draws."""
    members: dict[str, list[int]] = {name: [] for name in manifest.objectives}
    tags = list(manifest.languages)
    for index, tag in enumerate(tags):
        members[manifest.languages[tag].objective].append(index)
    return {
        name: (found, normalise([shares.positions[tags[i]] for i in found]), name)
        for name, found in members.items()
    }
