"""Hugging Face tokenizers with odd vocabularies, and what Megatron's own flags make of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_moo.data import build_corpus, load_manifest
from megatron_moo.data.indexed import IndexedWriter
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
