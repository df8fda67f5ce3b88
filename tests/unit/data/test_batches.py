"""Exactly once, layouts, resumes: the promises of LaneBatches."""

from __future__ import annotations

import copy
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_moo.data import (
    Corpus,
    LaneBatches,
    LaneSchedule,
    LanguageSampler,
    Manifest,
    build_corpus,
    expected_positions,
    load_manifest,
    plan_shares,
    small_language_notes,
)
from megatron_moo.errors import MooError
from tests.unit.data.conftest import MakeCorpus

SEQ = 8


def _sizes(*samples: int) -> list[int]:
    """Stream lengths that make these numbers of samples, the last one short."""
    return [n * SEQ - 3 for n in samples]


def _lane(
    manifest: Manifest, corpus: Corpus, lanes: int, slots: int, lane: int, **kwargs: Any
) -> LaneBatches:
    presence = kwargs.pop("presence", "present")
    sampler = LanguageSampler(corpus, "train", SEQ, seed=11)
    shares = plan_shares(manifest, sampler, presence)
    schedule = LaneSchedule(len(manifest.objectives), lanes, slots, 5, presence, shares.objectives)
    return LaneBatches(sampler, schedule, manifest, lane, shares=shares, seed=5, **kwargs)


def _key(batch: dict[str, Any]) -> list[tuple]:
    """Identities of the rows: the language and the labels that count."""
    rows = zip(batch["labels"].tolist(), batch["loss_mask"].tolist(), strict=True)
    return [(batch["language"], tuple(x if m else -1 for x, m in zip(a, b, strict=True))) for a, b in rows]


def _steps(lanes: list[LaneBatches], steps: int, per_lane: int) -> list[Counter]:
    return [
        Counter(key for b in lanes for _ in range(per_lane) for key in _key(next(b))) for _ in range(steps)
    ]


@pytest.mark.parametrize(("micro_batch_size", "steps"), [(1, 5000), (3, 1700)])
def test_exactly_once_over_an_epoch_with_ten_random_stops(
    make_corpus: MakeCorpus, micro_batch_size: int, steps: int
) -> None:
    samples = {"en": 117, "de": 1, "fr": 5000}
    manifest, corpus = make_corpus(dict(zip(samples, _sizes(*samples.values()), strict=True)))
    rng = random.Random(0)
    stops = sorted(rng.sample(range(1, steps), 10))
    # Each stop resumes at another layout of the same L = 4 (one objective comes twice in each step, in turn).
    layouts = [(1, 4), (2, 2), (4, 1)]
    seen: dict[str, list[tuple[int, int]]] = {tag: [] for tag in samples}
    state, begin = None, 0
    for number, end in enumerate([*stops, steps]):
        d, s = layouts[number % 3]
        lanes = [_lane(manifest, corpus, d, s, lane, micro_batch_size=micro_batch_size) for lane in range(d)]
        for lane in lanes:
            if state is not None:
                lane.load_state_dict(copy.deepcopy(state))
            # The record of what was drawn is taken at the sampler, where (language, consumed) becomes a
            # sample.
            original = lane.sampler.position
            blank = lane.sampler.empty()
            lane.sampler.sample = lambda tag, n, f=original, b=blank: seen[tag].append(f(tag, n)) or b
        for _ in range(begin, end):
            for lane in lanes:
                for _ in range(s):
                    next(lane)
        states = [lane.state_dict() for lane in lanes]
        assert all(other == states[0] for other in states), "counters are global: equal on all ranks"
        state, begin = states[0], end
    for tag, count in samples.items():
        drawn = seen[tag]
        assert len(drawn) == state["consumed"][tag]
        assert len(drawn) >= count
        whole = len(drawn) // count
        counts = Counter(drawn)
        assert set(counts.values()) == {1}, f"{tag}: a sample came twice in an epoch"
        epochs = Counter(epoch for epoch, _ in drawn)
        assert all(epochs[epoch] == count for epoch in range(whole)), f"{tag}: an epoch lost samples"


def test_the_tokens_of_an_epoch_are_the_stream(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 3 * SEQ - 3, "de": 5})
    sampler = LanguageSampler(corpus, "train", SEQ, seed=3)
    for tag in manifest.languages:
        stream = corpus.stream(tag, "train").read(0, len(corpus.stream(tag, "train")))
        rows = sorted((sampler.position(tag, i)[1], i) for i in range(sampler.samples(tag)))
        targets, inputs = [], []
        for _, i in rows:
            sample = sampler.sample(tag, i)
            keep = sample["loss_mask"] > 0
            targets.extend(sample["labels"][keep])
            inputs.extend(sample["tokens"][keep])
        np.testing.assert_array_equal(targets, stream)
        np.testing.assert_array_equal(inputs, [corpus.eod, *stream[:-1]])


@pytest.mark.parametrize("presence", ["present", "law"])
def test_the_same_run_at_every_split_of_l(make_corpus: MakeCorpus, presence: str) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 90, "fr": 230}, sampling="proportional")
    runs = []
    for d, s in ((1, 4), (2, 2), (4, 1)):
        lanes = [
            _lane(manifest, corpus, d, s, i, micro_batch_size=2, micro_batches=3, presence=presence)
            for i in range(d)
        ]
        runs.append(_steps(lanes, 12, 3 * s))
    assert runs[0] == runs[1] == runs[2]


def test_peers_share_a_lane(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 90})
    whole = _steps([_lane(manifest, corpus, 2, 1, i, micro_batches=4) for i in range(2)], 6, 4)
    peers = [
        _lane(manifest, corpus, 2, 1, i, micro_batches=4, peer=p, peers=2) for i in range(2) for p in range(2)
    ]
    assert _steps(peers, 6, 2) == whole


def test_batches_are_of_one_language_and_of_the_scheduled_objective(make_corpus: MakeCorpus) -> None:
    per = {
        "de": {"objective": "germanic"},
        "en": {"objective": "germanic", "weight": 3},
        "fr": {"objective": "romance"},
    }
    manifest, corpus = make_corpus({"en": 400, "fr": 300, "de": 200}, per_language=per)
    assert manifest.objectives == ("germanic", "romance")
    lane = _lane(manifest, corpus, 1, 2, 0, micro_batch_size=2, micro_batches=2)
    texts = [(corpus.path.parent / f"{tag}.txt").read_text() for tag in manifest.languages]
    languages = Counter()
    for _ in range(40):
        for objective in lane.schedule.flat(lane.step):
            for _ in range(2):
                batch = next(lane)
                assert (
                    batch["objective"]
                    == objective
                    == manifest.objective_of[list(manifest.languages)[batch["language"]]]
                )
                languages[batch["language"]] += 1
                for labels, mask in zip(batch["labels"].tolist(), batch["loss_mask"].tolist(), strict=True):
                    run = bytes(i for i, m in zip(labels, mask, strict=True) if m and i < 256).decode()
                    assert run in texts[batch["language"]]
    assert languages[0] + languages[2] == languages[1] == 80
    assert languages[0] == pytest.approx(60, abs=2), (
        "inside an objective the languages are drawn by their weights"
    )


def test_long_run_token_shares_are_the_law_although_a_small_language_pads(make_corpus: MakeCorpus) -> None:
    sizes = {"en": 9 * SEQ, "de": 5, "fr": 40 * SEQ - 3}
    manifest, corpus = make_corpus(sizes, sampling={"law": "temperature", "temperature": 2.0})
    lane = _lane(manifest, corpus, 1, 2, 0, presence="law")
    tokens = Counter()
    for _ in range(12_000):
        batch = next(lane)
        tokens[list(sizes)[batch["language"]]] += int(batch["loss_mask"].sum())
    roots = {tag: n**0.5 for tag, n in sizes.items()}
    report = lane.report()
    for tag in sizes:
        asked = roots[tag] / sum(roots.values())
        assert report[tag]["asked"] == pytest.approx(asked)
        assert tokens[tag] / tokens.total() == pytest.approx(asked, rel=0.01)
        assert report[tag]["tokens"] == tokens[tag], "the report counts what was really drawn"


@pytest.mark.parametrize("presence", ["present", "law"])
def test_what_is_drawn_becomes_what_its_presence_expects(make_corpus: MakeCorpus, presence: str) -> None:
    """Three languages of very different size, four places a step: ``present`` lifts the small ones."""
    manifest, corpus = make_corpus({"en": 400, "de": 90, "fr": 13}, sampling="proportional")
    lane = _lane(manifest, corpus, 1, 4, 0, presence=presence)
    for _ in range(4 * 4096):
        next(lane)
    report = lane.report()
    for tag, size in (("en", 400), ("de", 90), ("fr", 13)):
        assert report[tag]["asked"] == pytest.approx(size / 503)
        assert report[tag]["drawn"] == pytest.approx(report[tag]["expected"], rel=0.01)
        if presence == "law":
            assert report[tag]["expected"] == pytest.approx(report[tag]["asked"])
    if presence == "present":
        assert report["fr"]["drawn"] > 5 * report["fr"]["asked"], "in every step, whatever its share"


def test_notes_say_what_is_small_and_how_often_it_repeats(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 5, "fr": "un\n\ndeux\n\ntrois, quatre, cinq"})
    sampler = LanguageSampler(corpus, "train", SEQ)
    shares = plan_shares(manifest, sampler)
    draws = expected_positions(manifest, shares, LaneSchedule(3, 3, shares=shares.objectives))
    assert draws == pytest.approx(dict.fromkeys(("en", "de", "fr"), 1 / 3))
    assert small_language_notes(manifest, sampler) == [
        "en: one document only",
        "de: 5 tokens are shorter than one sequence of 8 (padded, loss mask 0); one document only",
    ]
    epoch = {tag: sampler.samples(tag) for tag in manifest.languages}
    assert epoch == {"en": 50, "de": 1, "fr": 4}
    assert small_language_notes(manifest, sampler, draws, 300) == [
        "en: one document only; repeats about 2.0x",
        "de: 5 tokens are shorter than one sequence of 8 (padded, loss mask 0); one document only",
        "text that repeats more than 4 times in this run: de 100x, fr 25.0x",
    ]


def test_resume_with_a_language_removed_and_added_loses_and_repeats_nothing(
    make_corpus: MakeCorpus, tmp_path: Path
) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 90, "fr": 230})
    before = _lane(manifest, corpus, 2, 2, 0)
    for _ in range(22):
        next(before)
    state = before.state_dict()

    text = yaml.safe_load(manifest.path.read_text())
    text["languages"].pop("de")
    (tmp_path / "it.txt").write_text("ciao " * 40)
    text["languages"]["it"] = {"train": ["it.txt"]}
    text["sampling"] = "proportional"
    manifest.path.write_text(yaml.safe_dump(text, sort_keys=False))
    changed = load_manifest(manifest.path)
    after = _lane(changed, build_corpus(changed, tmp_path / "corpus2"), 1, 3, 0)
    after.load_state_dict(state)
    assert after.drawn() == {"en": state["consumed"]["en"], "fr": state["consumed"]["fr"], "it": 0}
    assert after.step == 11
    for _ in range(30):
        next(after)
    kept = after.state_dict()
    assert kept["consumed"]["de"] == state["consumed"]["de"], "a removed language keeps its count"
    assert kept["law_began"] == 11
    told = after.report()
    assert sum(language["drawn"] for language in told.values()) == pytest.approx(1.0)
    since = {tag: kept["consumed"][tag] - state["consumed"].get(tag, 0) for tag in told}
    assert told["it"]["tokens"] <= since["it"] * SEQ
    assert told["en"]["tokens"] == since["en"] * SEQ, (
        "shares are told of what was drawn under the present law"
    )
    assert told["en"]["samples"] == kept["consumed"]["en"]
    back = _lane(manifest, corpus, 2, 2, 0)
    back.load_state_dict(kept)
    assert back.drawn()["de"] == state["consumed"]["de"]
    assert back.drawn()["en"] == kept["consumed"]["en"]


def test_state_in_the_middle_of_a_step_is_that_of_the_last_finished_one(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 90})
    lane = _lane(manifest, corpus, 1, 2, 0, micro_batches=2)
    first = [_key(next(lane)) for _ in range(4)]
    assert first
    state = lane.state_dict()
    expected = [_key(next(lane)) for _ in range(3)]
    assert lane.state_dict() == state
    again = _lane(manifest, corpus, 1, 2, 0, micro_batches=2)
    again.load_state_dict(state)
    assert [_key(next(again)) for _ in range(3)] == expected


def test_bad_input_is_named(make_corpus: MakeCorpus) -> None:
    manifest, corpus = make_corpus({"en": 400, "de": 90})
    with pytest.raises(MooError, match="3 micro-batches cannot be shared by 2 peers"):
        _lane(manifest, corpus, 1, 1, 0, micro_batches=3, peers=2)
    with pytest.raises(MooError, match="lane 4 of 2"):
        _lane(manifest, corpus, 2, 1, 4)
    with pytest.raises(MooError, match="no train data for language 'xx'"):
        LanguageSampler(corpus, "train", SEQ).samples("xx")
