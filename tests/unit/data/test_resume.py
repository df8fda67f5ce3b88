"""A resume on changed text: nothing is repeated silently, and older states still load."""

from __future__ import annotations

import logging
import random
from collections import Counter
from typing import Any

import pytest

from megatron_moo.data import LaneBatches, LaneSchedule, LanguageSampler, MixedBatches
from tests.unit.data.conftest import MakeCorpus

SEQ = 8


def _batches(kind: str, made: Any, seed: int = 3) -> Any:
    manifest, corpus = made
    sampler = LanguageSampler(corpus, "train", SEQ, seed)
    if kind == "mixed":
        return MixedBatches(sampler, manifest)
    return LaneBatches(sampler, LaneSchedule(len(manifest.objectives), 1, 2), manifest)


def _drawn(batches: Any, language: int, count: int) -> Counter:
    found: Counter = Counter()
    for batch in iter(batches):
        if int(batch["language"]) == language:
            found[tuple(batch["labels"][0].tolist())] += 1
        if found.total() == count:
            break
    while getattr(batches, "_queue", None):
        next(batches)
    return found


@pytest.mark.parametrize("kind", ["lanes", "mixed"])
def test_a_language_whose_text_changed_begins_its_epoch_anew(
    make_corpus: MakeCorpus, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    before = _batches(kind, make_corpus({"en": 400, "de": 400}))
    _drawn(before, 0, 30)
    state = before.state_dict()
    assert state["consumed"]["en"] >= 30
    # The same number of samples: only the text tells.
    text = "".join(random.Random(7).choices("abcdefghijklmnop", k=399))
    after = _batches(kind, make_corpus({"en": text, "de": 400}))
    samples = after.sampler.samples("en")
    assert samples == before.sampler.samples("en")
    with caplog.at_level(logging.WARNING):
        after.load_state_dict(state)
    assert [r.getMessage() for r in caplog.records] == [
        "not the samples that the checkpoint counted, an epoch begins anew: en (another text)"
    ]
    assert after.begun_anew == caplog.records[0].getMessage()
    assert after.drawn() == {"en": 0, "de": state["consumed"]["de"]}
    whole = {tuple(after.sampler.sample("en", i)["labels"].tolist()) for i in range(samples)}
    found = _drawn(after, 0, samples)
    assert set(found) == whole and len(found) == samples, "each sample of the new text once"
    assert after.report()["en"]["tokens"] > 0
    resumed = _batches(kind, (after.manifest, after.sampler.corpus))
    resumed.load_state_dict(after.state_dict())
    assert resumed.drawn() == after.drawn(), "the new text is what is counted now"


@pytest.mark.parametrize("kind", ["lanes", "mixed"])
def test_a_language_that_comes_back_with_another_text_begins_anew(make_corpus: MakeCorpus, kind: str) -> None:
    first = _batches(kind, make_corpus({"en": 400, "de": 400}))
    _drawn(first, 1, 20)
    without = _batches(kind, make_corpus({"en": 400}))
    without.load_state_dict(first.state_dict())
    assert without.state_dict()["consumed"]["de"] == first.drawn()["de"]
    for text, expected in ((400, first.drawn()["de"]), (401, 0)):
        back = _batches(kind, make_corpus({"en": 400, "de": text}))
        back.load_state_dict(without.state_dict())
        assert back.drawn() == {"en": first.drawn()["en"], "de": expected}


@pytest.mark.parametrize("kind", ["lanes", "mixed"])
def test_a_state_without_identities_still_loads_and_another_seed_counts_anew(
    make_corpus: MakeCorpus, kind: str
) -> None:
    made = make_corpus({"en": 400, "de": 400})
    before = _batches(kind, made)
    _drawn(before, 0, 20)
    old = before.state_dict()
    del old["streams"]
    after = _batches(kind, made)
    after.load_state_dict(old)
    assert after.drawn() == before.drawn()
    other = _batches(kind, made, seed=4)
    other.load_state_dict(before.state_dict())
    assert other.drawn() == {"en": 0, "de": 0}
