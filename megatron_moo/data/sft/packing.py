"""Conversations packed into samples: document masks, positions from 0 in each document."""

from __future__ import annotations

import numpy as np

from megatron_moo.data.corpus import Stream
from megatron_moo.data.views import Sample
from megatron_moo.errors import MooError

_OPEN_BINS = 64


class PackedView:
    """Samples that hold whole conversations.

    A conversation of n tokens takes n - 1 positions (inputs all but the last, labels all but the first), so
    no target of one
    is predicted from another. Every conversation is in exactly one sample. ``segment_ids`` number the
    documents of a
    sample (padding is a segment of its own); attention must stay inside a segment.

    Args:
        stream: built from conversations (with loss modes).
        seq_length: positions per sample.
        eod: padding id.
        pack: several conversations per sample; False: one.
    """

    def __init__(self, stream: Stream, seq_length: int, eod: int, pack: bool = True) -> None:
        self._stream, self._seq, self._eod = stream, seq_length, eod
        self._modes, self._lengths, self._bounds = _index(stream)
        ends = np.concatenate([[0], np.cumsum(self._lengths, dtype=np.int64)])
        self._starts = ends[self._bounds]
        sizes = np.diff(self._starts) - 1
        if len(sizes) and sizes.max() > seq_length:
            what = f"a conversation of {int(sizes.max()) + 1} tokens does not fit a sample of {seq_length}"
            raise MooError(what, stream.entry.tag, "lower sft.max_length and build, or raise seq-length")
        self._loss = self._loss_per_document()
        self._plan = pack_documents(sizes, seq_length) if pack else [np.array([i]) for i in range(len(sizes))]
        self.samples = len(self._plan)
        self.targets = int(self._loss.sum())

    def _loss_per_document(self) -> np.ndarray:
        counted = np.concatenate([[0], np.cumsum(self._lengths * (self._modes == 1), dtype=np.int64)])
        # A document's first token is never a target.
        return np.diff(counted[self._bounds]) - (self._modes[self._bounds[:-1]] == 1)

    def targets_of(self, position: int) -> int:
        """Loss-counted targets of a sample."""
        return int(self._loss[self._plan[position]].sum())

    def sample(self, position: int) -> Sample:
        """tokens, labels, loss_mask, position_ids and segment_ids (int32), each [seq_length]."""
        sample: Sample = {
            "tokens": np.full(self._seq, self._eod, np.int64),
            "labels": np.full(self._seq, self._eod, np.int64),
            "loss_mask": np.zeros(self._seq, np.float32),
            "position_ids": np.zeros(self._seq, np.int64),
            "segment_ids": np.zeros(self._seq, np.int32),
        }
        at = 0
        for segment, document in enumerate(self._plan[position]):
            tokens, mask = self._document(int(document))
            at = _place(sample, at, segment, tokens, mask)
        rest = self._seq - at
        sample["position_ids"][at:] = np.arange(rest)
        sample["segment_ids"][at:] = len(self._plan[position])
        return sample

    def _document(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        start, end = int(self._starts[number]), int(self._starts[number + 1])
        sequences = slice(int(self._bounds[number]), int(self._bounds[number + 1]))
        mask = np.repeat(self._modes[sequences], self._lengths[sequences])
        return self._stream.read(start, end - start), mask


def _place(sample: Sample, at: int, segment: int, tokens: np.ndarray, mask: np.ndarray) -> int:
    end = at + len(tokens) - 1
    sample["tokens"][at:end], sample["labels"][at:end] = tokens[:-1], tokens[1:]
    sample["loss_mask"][at:end] = mask[1:]
    sample["position_ids"][at:end] = np.arange(end - at)
    sample["segment_ids"][at:end] = segment
    return end


def _index(stream: Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    modes, lengths, bounds, shift = [], [], [np.zeros(1, np.int64)], 0
    for file in stream.files:
        if file.modes is None:
            raise MooError("has no loss modes", str(file.prefix), "build it from conversations")
        modes.append(file.modes)
        lengths.append(file.lengths)
        bounds.append(file.bounds[1:] + shift)
        shift += len(file.lengths)
    return np.concatenate(modes), np.concatenate(lengths), np.concatenate(bounds)


def pack_documents(sizes: np.ndarray, room: int) -> list[np.ndarray]:
    """Documents per sample: best fit over at most 64 open samples, in document order (deterministic, memory
    O(documents)).

    Args:
        sizes: positions that each document takes, all <= room.
        room: positions of a sample.
    """
    done: list[list[int]] = []
    bins: list[tuple[int, list[int]]] = []
    for document, size in enumerate(sizes.tolist()):
        fitting = [i for i, (free, _) in enumerate(bins) if free >= size]
        if fitting:
            best = min(fitting, key=lambda i: bins[i][0])
            free, members = bins[best]
            members.append(document)
            bins[best] = (free - size, members)
            continue
        if len(bins) == _OPEN_BINS:
            fullest = min(range(len(bins)), key=lambda i: bins[i][0])
            done.append(bins.pop(fullest)[1])
        bins.append((room - size, [document]))
    done.extend(members for _, members in bins)
    return [np.array(members) for members in sorted(done)]
