"""LanguageSampler: sample number ``consumed`` of a language, a pure function of (seed, language,
consumed)."""

from __future__ import annotations

from functools import lru_cache

from megatron_moo.data.corpus import Corpus
from megatron_moo.data.permutation import Permutation, stable_hash
from megatron_moo.data.views import Sample, View, WindowView, empty_sample
from megatron_moo.errors import MooError


class LanguageSampler:
    """Samples of every language of one split.

    ``consumed`` counts a language's samples from the start of training, over all epochs: epoch = consumed //
    samples. Each
    epoch is a fresh permutation (``train``; ``valid`` keeps the order), computed without an index in memory,
    so every
    sample comes exactly once per epoch and a resume needs one number per language.

    Args:
        corpus: an opened corpus.
        split: ``train`` or ``valid``.
        seq_length: tokens per sample.
        seed: of the permutations.
    """

    def __init__(self, corpus: Corpus, split: str, seq_length: int, seed: int = 0) -> None:
        if split not in ("train", "valid"):
            raise MooError(f"unknown split {split!r}", todo="use train or valid")
        if seq_length < 1:
            raise MooError(f"seq_length {seq_length} is too short")
        self.corpus, self.split, self.seq_length, self.seed = corpus, split, seq_length, seed
        self._views: dict[str, View] = {}
        self._permutation = lru_cache(maxsize=1024)(self._make_permutation)

    def view(self, tag: str) -> View:
        """The numbered samples of a language in their own order."""
        if tag not in self._views:
            stream = self.corpus.stream(tag, self.split)
            if len(stream) == 0:
                raise MooError(
                    f"language {tag!r} has no {self.split} tokens", str(self.corpus.path), "give it text"
                )
            self._views[tag] = self._make_view(tag)
        return self._views[tag]

    def _make_view(self, tag: str) -> View:
        stream = self.corpus.stream(tag, self.split)
        if self.corpus.sft is not None:
            from megatron_moo.data.sft.packing import PackedView

            return PackedView(stream, self.seq_length, self.corpus.eod, pack=bool(self.corpus.sft["pack"]))
        return WindowView(stream, self.seq_length, self.corpus.eod)

    def samples(self, tag: str) -> int:
        """Samples in one epoch of a language."""
        return self.view(tag).samples

    def tokens_per_sample(self, tag: str) -> float:
        """Mean target tokens of a language's samples (less than seq_length where samples are padded)."""
        view = self.view(tag)
        return view.targets / view.samples

    def position(self, tag: str, consumed: int) -> tuple[int, int]:
        """(epoch, position in the view) of sample number ``consumed``."""
        if consumed < 0:
            raise IndexError(f"consumed {consumed} is negative")
        epoch, index = divmod(consumed, self.samples(tag))
        return epoch, self._permutation(tag, epoch)(index) if self.split == "train" else index

    def turn(self, tag: str, epoch: int, position: int) -> int:
        """When in an epoch (0 is first) the sample at ``position`` comes: the inverse of ``position``."""
        return self._permutation(tag, epoch).inverse(position) if self.split == "train" else position

    def sample(self, tag: str, consumed: int) -> Sample:
        """tokens, labels, position_ids (int64) and loss_mask (float32), each numpy [seq_length]."""
        return self.view(tag).sample(self.position(tag, consumed)[1])

    def targets(self, tag: str, consumed: int) -> int:
        """Target tokens of sample number ``consumed``, without reading it."""
        return self.view(tag).targets_of(self.position(tag, consumed)[1])

    def empty(self) -> Sample:
        """A sample that scores nothing."""
        return empty_sample(self.seq_length, self.corpus.eod)

    def _make_permutation(self, tag: str, epoch: int) -> Permutation:
        return Permutation(self.samples(tag), stable_hash(self.seed, self.split, tag, epoch))
