"""The text of the loss is the same in every language: whole pages, of the paragraphs that every language has."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText, choose, read_aligned
from megatron_moo.evaluate.evaluate import Asked, evaluate
from tests.unit.evaluate.tiny import opened, tiny_model, write_text


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, AlignedText]:
    return read_aligned(write_text(tmp_path / "text"))


def test_only_what_every_language_has(texts: dict[str, AlignedText]) -> None:
    bb = texts["bb"]
    del bb.paragraphs["page3", 3]
    for block in range(1, 6):
        del bb.paragraphs["page7", block]
    chosen = choose(texts)
    assert chosen.count == chosen.common == 11 and "page7" not in chosen.names
    at = chosen.names.index("page3")
    for tag, text in texts.items():
        wanted = "\n".join(text.paragraphs["page3", block] for block in (1, 2, 4, 5))
        assert chosen.documents[tag][at] == wanted
        assert chosen.covered(tag) == pytest.approx(
            sum(len(one.encode()) for one in chosen.documents[tag]) / text.bytes
        )


def test_whole_pages_until_there_is_enough_in_the_first_language(texts: dict[str, AlignedText]) -> None:
    everything = choose(texts)
    some = choose(texts, 1000)
    sizes = [len(one.encode()) for one in everything.documents["aa"]]
    assert some.names == everything.names[: some.count] and 1 < some.count < 11
    assert sum(sizes[: some.count]) >= 1000 > sum(sizes[: some.count - 1])
    assert some.documents["bb"] == everything.documents["bb"][: some.count]
    # Neither the order of the languages nor of the pages in a file decides.
    turned = {tag: texts[tag] for tag in reversed(texts)}
    assert choose(turned, 1000).names == some.names and choose(turned, 1000).digest == some.digest
    assert some.names != sorted(some.names)
    assert choose(texts, 1).count == 1
    assert some.digest != everything.digest


def test_nothing_in_common(texts: dict[str, AlignedText]) -> None:
    texts["bb"].paragraphs = {("other", 1): "x"}
    with pytest.raises(MooError, match="no paragraph is in all of aa, bb"):
        choose(texts)


def test_what_was_measured_is_told(tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text"))
    model = opened(tiny_model(tmp_path / "hf"))
    one = evaluate(model, texts, Asked(seq_length=32, windows=8, items=4, new_tokens=0), lambda line: None)
    turned = {tag: texts[tag] for tag in reversed(texts)}
    two = evaluate(model, turned, Asked(seq_length=32, windows=8, items=4, new_tokens=0), lambda line: None)
    chosen = choose(texts, 8 * 32 * 4)
    assert one["text"] == chosen.digest == two["text"] and len(one["text"]) == 12
    assert one["windows"] == 8 and one["documents"] == {"scored": chosen.count, "common": 12}
    assert one["items_hash"] == two["items_hash"] and len(one["items_hash"]) == 12
    for tag in texts:
        told = one["languages"][tag]
        assert told["bytes"] == sum(len(text.encode()) for text in chosen.documents[tag])
        assert told["covered"] == pytest.approx(chosen.covered(tag))
        assert told["nats"] == pytest.approx(told["loss"] * told["tokens"])
        assert two["languages"][tag]["loss"] == pytest.approx(told["loss"], rel=1e-6)
    # Languages compare by the nats of the same pages, in units of the table's first language.
    ratio = one["languages"]["bb"]["nats"] / one["languages"]["aa"]["nats"]
    assert one["relative_to"] == "aa" and two["relative_to"] == "bb"
    assert one["languages"]["bb"]["relative"] == pytest.approx(ratio)
    assert one["languages"]["aa"]["relative"] == 1 == two["languages"]["bb"]["relative"]
    other = evaluate(model, texts, Asked(seq_length=32, windows=1, items=3, new_tokens=0), lambda line: None)
    assert other["text"] != one["text"] and other["items_hash"] != one["items_hash"]
