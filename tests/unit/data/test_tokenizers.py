"""Hugging Face tokenizers with odd vocabularies, and what Megatron's own flags make of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_moo.data import build_corpus, load_manifest
from megatron_moo.data.indexed import IndexedWriter, open_indexed
from megatron_moo.data.preprocess import preprocess
from megatron_moo.errors import MooError


def _words(folder: Path, vocabulary: dict[str, int], bos: bool = False) -> Path:
    """A tokenizer of whole words; ``bos`` puts <s> before every text, as Llama's does."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
        )
    marks = {"bos_token": "<s>"} if bos else {}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", **marks
    )
    tokenizer.save_pretrained(str(folder))
    return folder


def test_a_vocabulary_with_gaps_keeps_its_ids(tmp_path: Path) -> None:
    _words(tmp_path / "hf", {"<unk>": 0, "</s>": 1, "one": 2, "far": 70_000})
    (tmp_path / "en.txt").write_text("one far one\n")
    spec = {"tokenizer": {"type": "hf", "path": "hf"}, "languages": {"en": {"train": ["en.txt"]}}}
    (tmp_path / "languages.yaml").write_text(yaml.safe_dump(spec))
    corpus = build_corpus(load_manifest(tmp_path / "languages.yaml"), tmp_path / "corpus")
    assert corpus.stream("en", "train").read(0, 4).tolist() == [2, 70_000, 2, 1]
    assert corpus.vocab_size == 70_001


@pytest.mark.parametrize("bad", [-1, 300, 70_000])
def test_the_writer_refuses_ids_outside_the_vocabulary(tmp_path: Path, bad: int) -> None:
    writer = IndexedWriter(tmp_path / "m", np.uint16, vocab_size=300)
    with pytest.raises(MooError, match=rf"token id {bad} is outside the vocabulary of 300"):
        writer.add(np.array([1, bad, 2]), np.array([3]), np.array([1]))
    writer.close()
    plain = IndexedWriter(tmp_path / "n", np.uint16)
    with pytest.raises(MooError, match="token id 65536 is outside"):
        plain.add(np.array([65_536]), np.array([1]), np.array([1]))
    plain.close()


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("bos", [True, False])
def test_preprocess_writes_the_ids_of_megatrons_own_tokenizer(
    tmp_path: Path, bos: bool, include: bool
) -> None:
    from megatron.core.tokenizers.text.libraries.huggingface_tokenizer import HuggingFaceTokenizer

    folder = _words(tmp_path / "hf", {"<unk>": 0, "</s>": 1, "<s>": 2, "one": 3, "two": 4}, bos)
    texts = ["one two one", "two", "three one"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    flags = [
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output-prefix",
        str(tmp_path / "out"),
        "--workers",
        "1",
    ]
    flags += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder), "--append-eod"]
    made = preprocess(flags + ([] if include else ["--tokenizer-hf-no-include-special-tokens"]))
    megatron = HuggingFaceTokenizer(str(folder), include_special_tokens=include)
    expected = [token for text in texts for token in [*megatron.text_to_ids(text), megatron.eos_id]]
    assert open_indexed(made[0]).tokens.tolist() == expected
    assert (2 in expected) == (bos and include)
