"""Everything that ``megatron-moo eval`` measures, as a dictionary for eval.json."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText
from megatron_moo.evaluate.cloze import CHANCE, Item, make_items, render, wilson
from megatron_moo.evaluate.generate import continue_text
from megatron_moo.evaluate.model import Opened
from megatron_moo.evaluate.scorer import Request, Scorer, Tokens, pair


@dataclass(frozen=True)
class Asked:
    """What a user asked for.

    Attributes:
        seq_length: targets per window of the loss; None: the run's own, or 512.
        windows: most windows per language; None: all.
        items: cloze items at most; 0: none.
        new_tokens: of a sample; 0: no samples.
        temperature: of the samples.
        batch_tokens: tokens of a batch.
    """

    seq_length: int | None = None
    windows: int | None = None
    items: int = 100
    new_tokens: int = 60
    temperature: float = 0.0
    batch_tokens: int = 2048


def evaluate(
    opened: Opened, texts: Mapping[str, AlignedText], asked: Asked, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Losses, cloze and samples of every language of ``texts``.

    For a run without ``texts``, losses are over its own corpus's held-out text and there is no cloze.

    Returns:
        ``model``, ``step`` (of a run's checkpoint, else None), ``seq_length``, ``languages`` {tag: loss, bits_per_byte,
        perplexity, tokens, bytes, cloze, sample}, ``cloze`` {items, chance}, and ``items`` for
        :func:`~megatron_moo.evaluate.cloze.write_task`.
    """
    scorer = Scorer(opened.model, opened.max_length, asked.batch_tokens)
    length = min(asked.seq_length or _run_length(opened) or 512, opened.max_length)
    found: dict[str, Any] = {
        "model": opened.name,
        "step": opened.step,
        "seq_length": length,
        "languages": {},
    }
    tags = list(texts) if texts else _corpus_tags(opened)
    for tag in tags:
        tell(f"{tag}: loss")
        found["languages"][tag] = _loss(opened, scorer, tag, texts.get(tag), length, asked.windows)
    items = make_items(texts, asked.items) if texts and asked.items else []
    if items:
        found["cloze"] = {"items": len(items), "chance": CHANCE}
        for tag in tags:
            tell(f"{tag}: cloze")
            found["languages"][tag]["cloze"] = score_cloze(scorer, opened, items, texts[tag])
    if asked.new_tokens:
        for tag in tags:
            prompt = _prompt(opened, tag, texts.get(tag))
            text = continue_text(
                opened.model, opened.tokenizer, prompt, asked.new_tokens, opened.max_length, asked.temperature
            )
            found["languages"][tag]["sample"] = {"prompt": prompt, "text": text}
    found["items"] = items
    return found


def score_cloze(scorer: Scorer, opened: Opened, items: Sequence[Item], text: AlignedText) -> dict[str, Any]:
    """Accuracy by summed log-probability (``acc``) and by log-probability per character (``acc_norm``).

    Both as lm-evaluation-harness defines them; ``interval`` is Wilson's 95 % of ``acc_norm``.
    """
    rendered = [render(item, text) for item in items]
    requests: list[Request] = [
        pair(opened.tokenizer, shown.context, "\n" + choice) for shown in rendered for choice in shown.choices
    ]
    scores = iter(scorer.loglikelihoods(requests))
    right = right_norm = 0
    for shown in rendered:
        sums = [next(scores) for _ in shown.choices]
        per = [value / len(choice) for value, choice in zip(sums, shown.choices, strict=True)]
        right += sums.index(max(sums)) == shown.answer
        right_norm += per.index(max(per)) == shown.answer
    count = len(rendered)
    return {
        "acc": right / count, "acc_norm": right_norm / count, "interval": wilson(right_norm, count), "items": count
    }  # fmt: skip


def _loss(
    opened: Opened, scorer: Scorer, tag: str, text: AlignedText | None, length: int, windows: int | None
) -> dict[str, Any]:
    tokenizer = opened.tokenizer
    tokens: Any
    if text is None:
        tokens = opened.corpus.stream(tag, "valid")
        size = int(tokens.bytes)
    else:
        tokens, size = Tokens(tokenizer.encode_batch(text.documents), tokenizer.eod), text.bytes
    nats, targets = scorer.stream(tokens, tokenizer.eod, length, windows)
    share = targets / len(tokens)  # bytes of the windows that were scored, where not all were
    return {
        "loss": nats / targets,
        "bits_per_byte": nats / math.log(2) / (size * share),
        "perplexity": math.exp(min(700.0, nats / targets)),
        "tokens": targets,
        "bytes": round(size * share),
    }


def _run_length(opened: Opened) -> int | None:
    if opened.run is None:
        return None
    import yaml

    flags = yaml.safe_load((opened.run / "recipe.yaml").read_text(encoding="utf-8"))["flags"]
    return int(flags["seq-length"])


def _corpus_tags(opened: Opened) -> list[str]:
    if opened.corpus is None:
        raise MooError("no text to evaluate on", "--text", "give a folder with TAG.jsonl or TAG.txt")
    if opened.corpus.sft is not None:
        raise MooError(
            "was fine-tuned on conversations, whose masks are not known here", opened.name, "give --text"
        )
    return list(opened.corpus.tags("valid"))


def _prompt(opened: Opened, tag: str, text: AlignedText | None, characters: int = 80) -> str:
    """The beginning of a language's longest held-out document, whole words where there are spaces."""
    if text is not None:
        whole = max(text.documents, key=len)
    else:
        stream = opened.corpus.stream(tag, "valid")
        whole = opened.tokenizer.decode(stream.read(0, min(len(stream), 4 * characters)).tolist())
    flat = " ".join(whole.split())[: characters + 1]
    cut = flat.rsplit(" ", 1)[0]
    return cut if len(cut) > characters // 2 else flat[:characters]
