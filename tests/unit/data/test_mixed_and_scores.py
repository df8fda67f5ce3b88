"""The plain-mixing baseline, and validation scores."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice

import pytest

from megatron_moo.data import EarlyStopping, LanguageSampler, MixedBatches, score
from megatron_moo.errors import MooError
from tests.unit.data.conftest import MakeCorpus


def _rows(batches: MixedBatches, count: int) -> list[tuple]:
    return [
        (language, tuple(labels))
        for batch in islice(iter(batches), count)
        for language, labels in zip(batch["language"].tolist(), batch["labels"].tolist(), strict=True)
    ]


def test_mixes_inside_micro_batches_the_same_at_any_split_and_resumes(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 100, "fr": 5}, sampling="proportional")
    sampler = LanguageSampler(corpus, "train", 8, 1)
    one = _rows(MixedBatches(sampler, manifest, 0, 1, 4, 4), 12)
    two = [MixedBatches(sampler, manifest, rank, 2, 2, 4) for rank in range(2)]
    for step in range(3):
        parts = [_rows(batches, 4) for batches in two]
        assert Counter(parts[0] + parts[1]) == Counter(one[16 * step : 16 * step + 16])
        assert two[0].state_dict() == two[1].state_dict()
        resumed = [MixedBatches(sampler, manifest, rank, 2, 2, 4) for rank in range(2)]
        for fresh, old in zip(resumed, two, strict=True):
            fresh.load_state_dict(old.state_dict())
        two = resumed
    assert len({language for language, _ in one[:4]}) > 1, "languages meet inside a micro-batch"


def test_mixed_token_shares_are_the_law(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 103, "fr": 5})
    batches = MixedBatches(LanguageSampler(corpus, "train", 8, 1), manifest, 0, 1, 100, 1)
    tokens = Counter()
    for batch in islice(iter(batches), 150):
        for language, count in zip(
            batch["language"].tolist(), batch["loss_mask"].sum(1).tolist(), strict=True
        ):
            tokens[language] += count
    report = batches.report()
    for language, tag in enumerate(manifest.languages):
        assert tokens[language] / tokens.total() == pytest.approx(1 / 3, rel=0.01)
        assert report[tag]["asked"] == pytest.approx(report[tag]["expected"]) == pytest.approx(1 / 3)


def test_scores_by_hand() -> None:
    scores = score({"en": 8 * math.log(2), "ko": 30 * math.log(2)}, {"en": 8, "ko": 10}, {"en": 8, "ko": 10})
    assert scores.loss == pytest.approx({"en": math.log(2), "ko": 3 * math.log(2)})
    assert scores.bits_per_byte == pytest.approx({"en": 1.0, "ko": 3.0})
    assert scores.macro == pytest.approx(2.0)
    assert scores.worst == "ko"
    with pytest.raises(MooError, match="'en' scored no tokens"):
        score({"en": 1.0}, {"en": 0}, {"en": 1})


def test_macro_and_worst_are_of_the_languages_trained_on() -> None:
    bits = {"en": 1.0, "ko": 3.0, "fy": 9.0, "nl": 5.0}
    nats = {tag: value * math.log(2) for tag, value in bits.items()}
    scores = score(nats, dict.fromkeys(bits, 1), dict.fromkeys(bits, 1), unseen=["fy", "nl"])
    assert (scores.macro, scores.worst) == (pytest.approx(2.0), "ko")
    assert (scores.macro_unseen, scores.worst_unseen) == (pytest.approx(7.0), "fy")


def test_a_nan_language_is_the_worst() -> None:
    assert score({"en": math.nan, "ko": 9.0}, {"en": 1, "ko": 1}, {"en": 1, "ko": 1}).worst == "en"


@pytest.mark.parametrize(("watch", "stops"), [("macro", [False, False, False, True]), ("en", [False] * 4)])
def test_early_stopping_watches_what_it_is_told(watch: str, stops: list[bool]) -> None:
    stopping = EarlyStopping(watch, patience=2, tags=["en", "ko"])
    passes = [(4.0, 4.0), (3.0, 3.0), (2.0, 4.5), (1.0, 6.0)]
    found = []
    for en, ko in passes:
        fresh = EarlyStopping(watch, patience=2)
        fresh.load_state_dict(stopping.state_dict())
        stopping = fresh
        scores = score({"en": en, "ko": ko}, {"en": 1, "ko": 1}, {"en": 1, "ko": 1})
        found.append(stopping.update(scores))
    assert found == stops
    other = EarlyStopping("worst", patience=2)
    other.load_state_dict(stopping.state_dict())
    assert (other.best, other.waited) == (math.inf, 0), "another number was watched"
    with pytest.raises(MooError, match="cannot watch 'xx'"):
        EarlyStopping("xx", tags=["en"])
    with pytest.raises(MooError, match="--moo-patience: 0 validations"):
        EarlyStopping("macro", 0)


def test_early_stopping_of_other_languages_counts_anew() -> None:
    two, three = EarlyStopping("macro", 2, tags=["a", "b"]), EarlyStopping("macro", 2, tags=["a", "b", "c"])
    two.best, two.waited = 2.0, 1
    three.load_state_dict(two.state_dict())
    assert (three.best, three.waited) == (float("inf"), 0)
    same = EarlyStopping("macro", 2, tags=["a", "b"])
    same.load_state_dict(two.state_dict())
    assert (same.best, same.waited) == (2.0, 1)


def test_early_stopping_on_the_unseen_languages_and_on_one_that_was_not_scored() -> None:
    stopping = EarlyStopping("unseen", 1, tags=["en", "fy", "nl"])
    for en, fy, stops in ((4.0, 4.0, False), (5.0, 3.0, False), (1.0, 3.5, True)):
        bits = {"en": en, "fy": fy, "nl": fy}
        ones = dict.fromkeys(bits, 1)
        scores = score({tag: v * math.log(2) for tag, v in bits.items()}, ones, ones, unseen=["fy", "nl"])
        assert stopping.value(scores) == pytest.approx(fy)
        assert stopping.update(scores) == stops
    seen_only = score({"en": 1.0}, {"en": 1}, {"en": 1})
    for watch in ("unseen", "de"):
        with pytest.raises(MooError, match=f"no validation text for '{watch}'"):
            EarlyStopping(watch, tags=["en", "de"]).update(seen_only)
