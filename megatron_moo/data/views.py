"""How a language's tokens become numbered samples: windows of a stream (pretraining)."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from megatron_moo.data.corpus import Stream

Sample = dict[str, np.ndarray]


class View(Protocol):
    """Numbered samples of one language and split.

    Attributes:
        samples: how many there are; together they hold every target token exactly once.
        targets: target tokens of all samples together.
    """

    samples: int
    targets: int

    def targets_of(self, position: int) -> int: ...

    def sample(self, position: int) -> Sample: ...


class WindowView:
    """Consecutive windows of ``seq_length`` targets.

    The stream is read with one end-of-document id before it, so its first token is a target too; the last
    window is
    padded with loss mask 0. So every token is a target exactly once, and a language shorter than a window
    works.
    """

    def __init__(self, stream: Stream, seq_length: int, eod: int) -> None:
        self._stream, self._seq, self._eod = stream, seq_length, eod
        self.targets = len(stream)
        self.samples = -(-self.targets // seq_length)

    def targets_of(self, position: int) -> int:
        """Target tokens (loss mask 1) of a sample."""
        return min(self._seq, self.targets - position * self._seq)

    def sample(self, position: int) -> Sample:
        """tokens, labels, position_ids int64 and loss_mask float32, each [seq_length]."""
        start, count = position * self._seq, self.targets_of(position)
        window = np.full(self._seq + 1, self._eod, np.int64)
        first = 1 if start == 0 else 0
        window[first : count + 1] = self._stream.read(start - 1 + first, count + 1 - first)
        mask = np.zeros(self._seq, np.float32)
        mask[:count] = 1.0
        return {
            "tokens": window[:-1],
            "labels": window[1:],
            "loss_mask": mask,
            "position_ids": np.arange(self._seq, dtype=np.int64),
        }


def empty_sample(seq_length: int, eod: int) -> Sample:
    """A sample that scores nothing (loss mask all zero)."""
    return {
        "tokens": np.full(seq_length, eod, np.int64),
        "labels": np.full(seq_length, eod, np.int64),
        "loss_mask": np.zeros(seq_length, np.float32),
        "position_ids": np.arange(seq_length, dtype=np.int64),
    }
