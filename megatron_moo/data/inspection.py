"""``data inspect``: what a model will see, readable."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from megatron_moo.data.corpus import Corpus
from megatron_moo.data.indexed import IndexedFile
from megatron_moo.data.manifest import Manifest
from megatron_moo.data.sampler import LanguageSampler
from megatron_moo.data.shares import plan_shares, small_language_notes
from megatron_moo.data.tables import corpus_table
from megatron_moo.data.tokenizers import Tokenizer
from megatron_moo.data.views import Sample


def inspect(
    corpus: Corpus,
    manifest: Manifest | None = None,
    language: str | None = None,
    samples: int = 1,
    seq_length: int | None = None,
    seed: int = 0,
) -> Iterator[RenderableType]:
    """Tables of counts, lengths and shares, warnings about small languages, then decoded samples.

    ``seq_length`` None is 128, or for conversations the longest that the corpus holds.

    Raises:
        MooError: an unknown language, or a manifest with a language that the corpus does not have.
    """
    if language is not None:
        corpus.entry(language, "train" if language in corpus.tags("train") else "valid")
    yield corpus_table(corpus)
    yield lengths_table(corpus)
    if seq_length is None:
        seq_length = int(corpus.sft["max_length"]) if corpus.sft else 128
    sampler = LanguageSampler(corpus, "train", seq_length, seed)
    if manifest is not None:
        yield shares_table(manifest, sampler)
    if samples:
        yield from _samples(corpus, language, samples, seq_length, seed)


def lengths_table(corpus: Corpus) -> Table:
    """Tokens per document: shortest, median, 90th percentile, longest."""
    table = Table(title="tokens per document", title_justify="left")
    for name in ("language", "split", "shortest", "median", "p90", "longest"):
        table.add_column(name, justify="left" if name in ("language", "split") else "right")
    for tag, split in corpus.entries:
        lengths = np.concatenate([_document_lengths(f) for f in corpus.stream(tag, split).files])
        values = (lengths.min(), np.median(lengths), np.percentile(lengths, 90), lengths.max())
        table.add_row(tag, split, *(f"{float(v):,.0f}" for v in values))
    return table


def _document_lengths(file: IndexedFile) -> np.ndarray:
    ends = np.concatenate([[0], np.cumsum(file.lengths, dtype=np.int64)])
    return np.diff(ends[file.bounds])


def shares_table(manifest: Manifest, sampler: LanguageSampler) -> Table:
    """Share of the tokens that the law asks for, and how often a language is drawn to give it; then notes."""
    shares = plan_shares(manifest, sampler, "law", budget=_default_budget(manifest, sampler))
    table = Table(title=f"shares under the law {manifest.sampling.law!r}", title_justify="left")
    for name in (
        "language",
        "objective",
        "weight",
        "preference",
        "token share %",
        "draws %",
        "samples/epoch",
    ):
        table.add_column(name, justify="left" if name in ("language", "objective") else "right")
    for tag, language in manifest.languages.items():
        table.add_row(
            tag,
            language.objective,
            f"{language.weight:g}",
            f"{language.preference:g}",
            f"{100 * shares.tokens[tag]:.3f}",
            f"{100 * shares.positions[tag]:.3f}",
            f"{sampler.samples(tag):,}",
        )
    table.caption = "\n".join(small_language_notes(manifest, sampler)) or None
    return table


def _default_budget(manifest: Manifest, sampler: LanguageSampler) -> int:
    """UniMax without a budget in the manifest is shown for one pass over everything."""
    return sum(sampler.view(tag).targets for tag in manifest.languages)


def _samples(
    corpus: Corpus, language: str | None, count: int, seq_length: int, seed: int
) -> Iterator[RenderableType]:
    tokenizer = corpus.tokenizer()
    for tag, split in corpus.entries:
        if split == "valid" and (tag, "train") in corpus.entries:
            continue
        if language is not None and tag != language:
            continue
        sampler = LanguageSampler(corpus, split, seq_length, seed)
        for number in range(min(count, sampler.samples(tag))):
            yield Text(f"\n{tag}, {split}, sample {number}", style="bold")
            yield coloured(sampler.sample(tag, number), tokenizer)


def coloured(sample: Sample, tokenizer: Tokenizer) -> Text:
    """A sample's targets as text: green where the loss counts, dim where it does not, documents apart.

    Without colours (piped) the counted text stands between ``[[`` and ``]]``.
    """
    labels, mask = sample["labels"], sample["loss_mask"] > 0
    segments = sample.get("segment_ids", np.zeros(len(labels), np.int64))
    text = Text()
    bounds = np.flatnonzero((np.diff(mask.astype(int)) != 0) | (np.diff(segments) != 0)) + 1
    for start, end in zip([0, *bounds], [*bounds, len(labels)], strict=True):
        begins = "segment_ids" in sample and (start == 0 or segments[start] != segments[start - 1])
        # The first token of a conversation is never a target, but readers want it.
        run = tokenizer.decode(
            [*sample["tokens"][start : start + begins].tolist(), *labels[start:end].tolist()]
        )
        if start and segments[start] != segments[start - 1]:
            text.append("\n--- next document ---\n", style="bold blue")
        if mask[start]:
            text.append(f"[[{run}]]", style="green")
        else:
            text.append(run, style="dim")
    return text
