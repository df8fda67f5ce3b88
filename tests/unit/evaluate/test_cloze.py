"""Items are aligned: one set of paragraphs and places for every language."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.stats import binomtest

from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText, read_aligned
from megatron_moo.evaluate.cloze import CHOICES, length_ratio, make_items, render, wilson, write_task
from tests.unit.evaluate.tiny import write_text

UDHR = Path(__file__).resolve().parents[3] / "examples" / "udhr" / "valid"


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, AlignedText]:
    return read_aligned(write_text(tmp_path / "text"))


def test_items_are_the_same_in_every_language_and_true(texts: dict[str, AlignedText]) -> None:
    items = make_items(texts, 30)
    assert 10 <= len(items) <= 30
    places = set()
    for item in items:
        right = item.choices[item.answer]
        places.add(item.answer)
        # The true one follows the context on its page; the others are of three other pages.
        assert item.context[-1] == (right[0], right[1] - 1)
        assert len({key[0] for key in item.choices}) == CHOICES
        for text in texts.values():
            shown = render(item, text)
            assert shown.choices[shown.answer] == text.paragraphs[right]
            assert shown.context == "\n".join(text.paragraphs[key] for key in item.context)
    assert len(places) == CHOICES


def test_distractors_have_a_similar_length_in_every_language(texts: dict[str, AlignedText]) -> None:
    # In bb, lengths are none of aa's: what is nearest in aa is far away here.
    random = np.random.default_rng(5)
    for key, text in texts["bb"].paragraphs.items():
        texts["bb"].paragraphs[key] = text * int(random.choice([1, 3, 9]))
    items = make_items(texts, 30)
    assert len(items) >= 10
    for text in texts.values():
        for item in items:
            lengths = [len(text.paragraphs[key]) for key in item.choices]
            assert max(lengths) <= 1.5 * min(lengths)
    assert 1 < length_ratio(items, texts) <= 1.5
    assert length_ratio([], texts) == 1.0


def test_the_order_of_the_languages_does_not_matter(texts: dict[str, AlignedText]) -> None:
    random = np.random.default_rng(5)
    for key, text in texts["bb"].paragraphs.items():
        texts["bb"].paragraphs[key] = text * int(random.choice([1, 2, 3]))
    turned = {tag: texts[tag] for tag in reversed(texts)}
    assert make_items(texts, 30) == make_items(turned, 30)


def test_choices_of_an_item_differ_in_every_language(texts: dict[str, AlignedText]) -> None:
    # One sentence in bb stands for many in aa, as "See also" does.
    for key in texts["bb"].paragraphs:
        if key[1] == 3:
            texts["bb"].paragraphs[key] = "x" * 57
    for item in make_items(texts, 30):
        for text in texts.values():
            assert len({text.paragraphs[key] for key in item.choices}) == CHOICES


def test_lengths_are_relaxed_only_where_a_text_has_too_few_alike() -> None:
    alike = read_aligned(UDHR, ["en"])
    items = make_items(alike, 100)
    assert len(items) == 5 and length_ratio(items, alike) > 1.5  # five articles of unequal length


def test_a_paragraph_that_one_language_lacks_is_in_no_item(texts: dict[str, AlignedText]) -> None:
    gone = ("page3", 3)
    del texts["bb"].paragraphs[gone]
    for item in make_items(texts, 100):
        assert gone not in item.choices and gone not in item.context


def test_udhr_gives_halves_in_every_script() -> None:
    texts = read_aligned(UDHR, ["en", "zh-Hans", "th", "hy"])
    items = make_items(texts, 100)
    assert len(items) == 5
    for text in texts.values():
        for item in items:
            shown = render(item, text)
            whole = " ".join(text.paragraphs[item.choices[item.answer]].split())
            answer = shown.choices[shown.answer]
            assert whole in (f"{shown.context} {answer}", shown.context + answer)
            assert min(len(shown.context), len(answer)) >= len(whole) // 4 - 1


def test_task_files_hold_the_same_items(texts: dict[str, AlignedText], tmp_path: Path) -> None:
    items = make_items(texts, 7)
    write_task(items, texts, tmp_path / "tasks")
    task = yaml.safe_load((tmp_path / "tasks" / "bb.yaml").read_text())
    lines = [json.loads(line) for line in (tmp_path / "tasks" / "bb.jsonl").read_text().splitlines()]
    assert task["dataset_kwargs"]["data_files"]["test"] == str(tmp_path / "tasks" / "bb.jsonl")
    assert [line["answer"] for line in lines] == [item.answer for item in items]
    assert [line["choices"] for line in lines] == [list(render(item, texts["bb"]).choices) for item in items]


@pytest.mark.parametrize(("right", "count"), [(0, 5), (3, 5), (25, 100), (100, 100)])
def test_wilson_is_scipys(right: int, count: int) -> None:
    found = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right, count) == pytest.approx((found.low, found.high), abs=1e-6)


def test_what_is_no_aligned_text(tmp_path: Path) -> None:
    with pytest.raises(MooError, match=r"no TAG\.jsonl"):
        read_aligned(tmp_path)
    (tmp_path / "aa.jsonl").write_text('{"id": "p", "blocks": [1, 2], "text": "one line"}\n')
    with pytest.raises(MooError, match=r"2 blocks but 1 lines.*aa\.jsonl:1|aa\.jsonl:1.*2 blocks"):
        read_aligned(tmp_path)
    (tmp_path / "aa.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(MooError, match="id, blocks and text"):
        read_aligned(tmp_path)
    with pytest.raises(MooError, match="no text of zz"):
        read_aligned(UDHR, ["zz"])
