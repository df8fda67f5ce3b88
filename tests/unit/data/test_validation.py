"""ValidationBatches: each target once per pass, the same number of micro-batches on all ranks."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_moo.data import LanguageSampler, ValidationBatches, build_corpus, load_manifest
from megatron_moo.errors import MooError
from tests.unit.data.conftest import MakeCorpus


@pytest.mark.parametrize("dp_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_every_target_once_per_pass_and_forever(
    make_corpus: MakeCorpus, dp_size: int, micro_batch_size: int
) -> None:
    _, corpus = make_corpus({"en": 101, "de": 5, "fr": 64})
    tags = ["en", "fr", "de"]
    sampler = LanguageSampler(corpus, "valid", 8)
    ranks = [ValidationBatches(sampler, tags, rank, dp_size, micro_batch_size) for rank in range(dp_size)]
    assert len({len(rank) for rank in ranks}) == 1
    iterators = [iter(rank) for rank in ranks]
    for _ in range(2):
        found = defaultdict(list)
        for rank, iterator in zip(ranks, iterators, strict=True):
            for batch in islice(iterator, len(rank)):
                assert batch["tokens"].shape == (micro_batch_size, 8)
                keep = batch["loss_mask"] > 0
                for row, mask in zip(batch["labels"].numpy(), keep.numpy(), strict=True):
                    found[tags[batch["language"]]].append(row[mask])
        for tag in tags:
            stream = corpus.stream(tag, "valid")
            expected = np.sort(stream.read(0, len(stream)))
            np.testing.assert_array_equal(np.sort(np.concatenate(found[tag])), expected)


def test_unknown_and_missing_languages_are_named(make_corpus: MakeCorpus) -> None:
    _, corpus = make_corpus({"en": 101})
    with pytest.raises(MooError, match="no valid data for language 'it'"):
        ValidationBatches(LanguageSampler(corpus, "valid", 8), ["en", "it"])
    with pytest.raises(MooError, match="no language to validate"):
        ValidationBatches(LanguageSampler(corpus, "valid", 8), [])


def test_a_language_without_validation_text_sits_out(make_corpus: MakeCorpus, tmp_path: Path) -> None:
    make_corpus({"de": 50, "en": 101, "nl": 60})
    text = yaml.safe_load((tmp_path / "languages.yaml").read_text())
    for tag in ("de", "nl"):
        del text["languages"][tag]["valid"]
    (tmp_path / "languages.yaml").write_text(yaml.safe_dump(text, sort_keys=False))
    corpus = build_corpus(load_manifest(tmp_path / "languages.yaml"), tmp_path / "corpus")
    sampler = LanguageSampler(corpus, "valid", 8)
    ranks = [ValidationBatches(sampler, ["de", "en", "nl"], rank, 3, 4) for rank in range(3)]
    batches = [batch for rank in ranks for batch in islice(iter(rank), len(rank))]
    assert {batch["language"] for batch in batches} == {1}
    assert sum(int(batch["loss_mask"].sum()) for batch in batches) == 101
    with pytest.raises(MooError, match="no language to validate"):
        ValidationBatches(sampler, ["de", "nl"])
