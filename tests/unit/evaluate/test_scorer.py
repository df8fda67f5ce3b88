"""The batched scorer against one sequence at a time."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from megatron_moo.data.tokenizers import ByteTokenizer
from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import read_aligned
from megatron_moo.evaluate.cloze import make_items, render
from megatron_moo.evaluate.evaluate import Asked, evaluate, score_cloze
from megatron_moo.evaluate.generate import continue_text
from megatron_moo.evaluate.model import Opened, open_model
from megatron_moo.evaluate.scorer import Request, Scorer, Tokens, pair
from tests.unit.evaluate.tiny import opened, tiny_model, write_text


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return opened(tiny_model(tmp_path_factory.mktemp("hf")))


def _slow(model: object, request: Request, most: int) -> float:
    """Log-probability of the continuation, token by token."""
    ids = [*request.context, *request.continuation][-(most + 1) :]
    with torch.no_grad():
        logs = model(torch.tensor([ids[:-1]])).logits[0].double().log_softmax(-1)  # type: ignore[operator]
    count = min(len(request.continuation), len(ids) - 1)
    return float(sum(logs[len(ids) - 1 - count + i, ids[len(ids) - count + i]] for i in range(count)))


def test_loglikelihoods_are_those_of_single_sequences_in_any_batch(tiny: Opened) -> None:
    random = np.random.default_rng(0)
    requests = [
        Request(tuple(random.integers(0, 257, a).tolist()), tuple(random.integers(0, 257, b).tolist()))
        for a, b in [(1, 1), (30, 5), (7, 40), (200, 3), (2, 94), (90, 60), (1, 1)]
    ]
    expected = [_slow(tiny.model, request, 96) for request in requests]
    for batch_tokens in (1, 200, 5000):
        found = Scorer(tiny.model, 96, batch_tokens).loglikelihoods(requests)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-3)


def test_a_stream_is_scored_once_per_token(tiny: Opened) -> None:
    tokens = Tokens([[1, 2, 3], list(range(100, 150)), [7]], eod=256)
    assert len(tokens) == 57
    nats, count = Scorer(tiny.model, 96, 40).stream(tokens, 256, 20)
    ids = tokens.read(0, 57).tolist()
    expected = 0.0
    for start in range(0, 57, 20):  # each window sees the token before it
        part = ids[start : start + 20]
        given = [256 if start == 0 else ids[start - 1], *part]
        expected -= _slow(tiny.model, Request((given[0],), tuple(part)), 96)
    assert count == 57
    assert nats == pytest.approx(expected, rel=1e-5)
    half, fewer = Scorer(tiny.model, 96).stream(tokens, 256, 20, most=2)
    assert fewer == 40 and half < nats


def test_pairs_are_cut_as_the_harness_cuts_them() -> None:
    request = pair(ByteTokenizer(), "ab  ", "c")
    assert bytes(request.context) == b"ab" and bytes(request.continuation) == b"  c"
    assert pair(ByteTokenizer(), "", "c").context == (256,)


def test_cloze_by_hand(tiny: Opened, tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text"))
    items = make_items(texts, 12)
    found = score_cloze(Scorer(tiny.model, 96), tiny, items, texts["aa"])
    right, right_norm = 0, 0
    for item in items:
        shown = render(item, texts["aa"])
        scores = [_slow(tiny.model, pair(tiny.tokenizer, shown.context, "\n" + c), 96) for c in shown.choices]
        right += int(np.argmax(scores)) == shown.answer
        right_norm += (
            int(np.argmax([s / len(c) for s, c in zip(scores, shown.choices, strict=True)])) == shown.answer
        )
    assert (found["acc"], found["acc_norm"]) == (right / len(items), right_norm / len(items))
    assert found["interval"][0] <= found["acc_norm"] <= found["interval"][1]


def test_everything_together(tiny: Opened, tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text"))
    found = evaluate(tiny, texts, Asked(seq_length=32, items=6, new_tokens=4), lambda line: None)
    assert list(found["languages"]) == ["aa", "bb"] and found["cloze"]["items"] == 6
    for tag, item in found["languages"].items():
        assert item["perplexity"] == pytest.approx(math.exp(item["loss"]))
        assert item["bytes"] == texts[tag].bytes
        nats = item["loss"] * item["tokens"]
        assert item["bits_per_byte"] == pytest.approx(nats / math.log(2) / item["bytes"], rel=1e-6)
        assert item["sample"]["prompt"] and isinstance(item["sample"]["text"], str)


def test_greedy_text_is_the_likeliest(tiny: Opened) -> None:
    text = continue_text(tiny.model, tiny.tokenizer, "hello", 1, 96)
    with torch.no_grad():
        token = int(tiny.model(torch.tensor([list(b"hello")])).logits[0, -1].argmax())
    assert text == tiny.tokenizer.decode([token])
    drawn = {continue_text(tiny.model, tiny.tokenizer, "hello", 3, 96, 5.0, seed) for seed in range(4)}
    assert len(drawn) > 1


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(MooError, match="neither a Hugging Face folder nor a run"), open_model(tmp_path):
        pass
    small = tiny_model(tmp_path / "small", vocab=100)
    with pytest.raises(MooError, match="257 ids, the model 100 rows"), open_model(small, "byte"):
        pass
