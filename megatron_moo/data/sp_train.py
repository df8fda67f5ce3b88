"""Train a SentencePiece model on the manifest's training sources, with its sampling law applied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_moo.data.laws import law_shares
from megatron_moo.data.manifest import Language, Manifest
from megatron_moo.data.permutation import mix, stable_hash
from megatron_moo.data.records import Fault, rows, texts
from megatron_moo.data.sources import expand, is_indexed, read_blocks
from megatron_moo.errors import MooError

DEFAULT_BYTES = 100_000_000
_LONGEST = 3000


def train_sentencepiece(manifest: Manifest, folder: Path, sft: bool = False) -> Path:
    """Train ``folder/sentencepiece.model`` and return its path.

    Each language contributes bytes in proportion to the sampling law (sizes in bytes): a line is taken
    ``quota / size`` times,
    the fractional part decided by a hash of its number, in one streaming pass. Text is kept as it is (no
    normalisation, no
    dummy prefix), unknown characters fall back to bytes, so decoding gives back the text; the model depends
    on nothing but
    the text and the spec.

    Raises:
        MooError: the vocabulary does not fit the text.
    """
    import sentencepiece

    spec = manifest.tokenizer
    sizes = {
        tag: sum(len(t.encode()) for t in _lines(language, sft))
        for tag, language in manifest.languages.items()
    }
    quotas = _quotas(manifest, sizes, int(spec.get("train_bytes", DEFAULT_BYTES)))
    model = folder / "sentencepiece.model"
    try:
        with model.open("wb") as out:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=_sample(manifest, sizes, quotas, sft), model_writer=out, **_options(spec)
            )
    except (RuntimeError, OSError) as error:
        model.unlink(missing_ok=True)
        raise MooError(_reason(str(error)), "tokenizer", "choose another vocab_size or more text") from error
    return model


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "vocab_size": spec["vocab_size"],
        "model_type": spec.get("model_type", "bpe"),
        "character_coverage": spec.get("character_coverage", 0.9995),
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "allow_whitespace_only_pieces": True,
        "split_digits": True,
        "num_threads": 1,
        "minloglevel": 2,
        "max_sentence_length": 4 * _LONGEST,
    }


def _quotas(manifest: Manifest, sizes: Mapping[str, int], limit: int) -> dict[str, float]:
    weights = {tag: language.weight for tag, language in manifest.languages.items()}
    total = min(limit, sum(sizes.values()))
    shares = law_shares(manifest.sampling, sizes, weights, budget=total)
    return {tag: share * total for tag, share in shares.items()}


def _sample(
    manifest: Manifest, sizes: Mapping[str, int], quotas: Mapping[str, float], sft: bool
) -> Iterator[str]:
    for tag, language in manifest.languages.items():
        whole, part = divmod(quotas[tag] / sizes[tag], 1.0)
        key = stable_hash("sentencepiece", tag)
        for number, line in enumerate(_lines(language, sft)):
            times = int(whole) + (mix(key + number) < part * 2.0**64)
            for _ in range(times):
                yield line


def _lines(language: Language, sft: bool) -> Iterator[str]:
    for source in language.train:
        if is_indexed(source):
            raise MooError(
                "a .bin/.idx source has no text to train a tokenizer on",
                str(source),
                "give the tokenizer's model",
            )
        for file in expand(source, language.reading):
            for block in read_blocks(file, language.reading, conversations=sft):
                for text in _block_texts(block, language, sft):
                    for line in text.split("\n"):
                        for at in range(0, len(line), _LONGEST):
                            yield line[at : at + _LONGEST]


def _block_texts(block: Any, language: Language, sft: bool) -> Iterator[str]:
    if not sft:
        yield from (item for item in texts(block, language.reading) if not isinstance(item, Fault))
        return
    from megatron_moo.data.sft.messages import parse_messages

    for row in rows(block, language.reading):
        if isinstance(row, Fault):
            continue
        messages = parse_messages(row[2])
        if not isinstance(messages, str):
            yield from (message["content"] for message in messages)


def _reason(text: str) -> str:
    found = re.search(r"Vocabulary size.*|.*too (?:high|small|large).*", text)
    return f"SentencePiece could not be trained: {(found.group(0) if found else text)[:200]}"
