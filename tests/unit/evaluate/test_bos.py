"""A tokenizer's own first piece (Llama's <s>): found, given to the model before every text, and never scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_moo.evaluate.aligned import read_aligned
from megatron_moo.evaluate.cloze import make_items, render
from megatron_moo.evaluate.evaluate import Asked, evaluate, score_cloze
from megatron_moo.evaluate.generate import continue_text
from megatron_moo.evaluate.model import Opened, open_model
from megatron_moo.evaluate.scorer import Scorer
from tests.unit.evaluate.tiny import byte_pieces, tiny_model, write_text

BEGIN = 257


@pytest.fixture(scope="module", params=[True, False], ids=["begin", "none"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("begin" if request.param else "none")
    hf = tiny_model(place, vocab=258, positions=256)
    byte_pieces(hf, begin=request.param)
    return hf


def _begins(folder: Path) -> bool:
    return folder.name.startswith("begin")


def _nats(opened: Opened, given: list[int], wanted: list[int]) -> float:
    with torch.no_grad():
        logs = opened.model(torch.tensor([[*given, *wanted][:-1]])).logits[0].double().log_softmax(-1)
    return -float(sum(logs[len(given) - 1 + i, token] for i, token in enumerate(wanted)))


def test_the_first_piece_is_the_tokenizers_own(folder: Path) -> None:
    from transformers import AutoTokenizer

    with open_model(folder) as opened:
        assert opened.bos == ((BEGIN,) if _begins(folder) else ())
        theirs = AutoTokenizer.from_pretrained(folder).encode("abc")
        assert [*opened.bos, *opened.tokenizer.encode_batch(["abc"])[0]] == theirs


def test_losses_cloze_and_samples_begin_with_it(folder: Path, tmp_path: Path) -> None:
    texts = read_aligned(write_text(tmp_path / "text", pages=8))
    with open_model(folder) as opened:
        asked = Asked(seq_length=100, items=4, new_tokens=3)
        found = evaluate(opened, texts, asked, lambda line: None)
        assert found["bos"] == (["<begin>"] if _begins(folder) else [])
        first = [BEGIN] if _begins(folder) else [opened.tokenizer.eod]
        nats = targets = 0.0
        for name in texts["aa"].documents:
            ids = [*opened.tokenizer.encode_batch([texts["aa"].documents[name]])[0], opened.tokenizer.eod]
            for start in range(0, len(ids), 100):
                before = ids[start - 1 : start] if start else []
                given = [*first[: 1 if _begins(folder) or not before else 0], *before]
                nats += _nats(opened, given, ids[start : start + 100])
            targets += len(ids)  # the first piece is no target
        told = found["languages"]["aa"]
        assert told["tokens"] == targets and told["loss"] == pytest.approx(nats / targets, rel=1e-5)

        item = make_items(texts, 4)[0]
        shown = render(item, texts["aa"])
        given = [*opened.bos, *opened.tokenizer.encode_batch([shown.context])[0]]
        sums = [
            -_nats(opened, given, opened.tokenizer.encode_batch(["\n" + choice])[0])
            for choice in shown.choices
        ]
        one = score_cloze(Scorer(opened.model, 256), opened, [item], texts["aa"])
        assert one["acc"] == float(sums.index(max(sums)) == item.answer)

        prompt = opened.tokenizer.encode_batch(["hello"])[0]
        with torch.no_grad():
            logits = opened.model(torch.tensor([[*opened.bos, *prompt]])).logits[0, -1]
        text = continue_text(opened.model, opened.tokenizer, "hello", 1, 256, bos=opened.bos)
        token = int(logits[: opened.tokenizer.vocab_size].argmax())
        assert text == ("" if token == opened.tokenizer.eod else opened.tokenizer.decode([token]))


def test_a_run_begins_its_texts_as_its_corpus_did(folder: Path, tmp_path: Path) -> None:
    """`data build` adds nothing; `tools/preprocess_data.py` puts the tokenizer's own pieces around every text."""
    from megatron_moo.data.tokenizers import HFTokenizer
    from megatron_moo.evaluate.model import begin_as_corpus

    plain, bos = begin_as_corpus(HFTokenizer(folder))
    assert bos == () and len(plain.encode_batch(["ab"])[0]) == 2
    special, bos = begin_as_corpus(HFTokenizer(folder, special=True))
    assert bos == ((BEGIN,) if _begins(folder) else ())
    assert special.encode_batch(["ab"]) == plain.encode_batch(["ab"])


def test_pieces_behind_a_text_are_not_taken_for_the_first(tmp_path: Path) -> None:
    hf = tiny_model(tmp_path / "hf", vocab=258, positions=64)
    byte_pieces(hf, begin=True)
    told = json.loads((hf / "tokenizer.json").read_text())
    told["post_processor"]["single"].append({"SpecialToken": {"id": "<end>", "type_id": 0}})
    told["post_processor"]["special_tokens"]["<end>"] = {"id": "<end>", "ids": [256], "tokens": ["<end>"]}
    (hf / "tokenizer.json").write_text(json.dumps(told))
    with open_model(hf) as opened:
        assert opened.bos == (BEGIN,)
