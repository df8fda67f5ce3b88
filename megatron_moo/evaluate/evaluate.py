"""Everything that ``megatron-moo eval`` measures, as a dictionary for eval.json."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText, Chosen, choose
from megatron_moo.evaluate.cloze import CHANCE, Item, items_digest, length_ratio, make_items, render, wilson
from megatron_moo.evaluate.generate import continue_text
from megatron_moo.evaluate.model import Opened
from megatron_moo.evaluate.scorer import Request, Scorer, pair, whole_text

# Bytes of a token, when --windows is turned into an amount of text: models with other tokenizers then read the same.
BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class Asked:
    """What a user asked for.

    Attributes:
        seq_length: targets per window of the loss; None: the run's own, or 512.
        windows: bounds the text of the loss. Of a run's own text: windows per language at most. Of aligned text:
            documents are taken until the first language (by its tag) has the bytes of so many windows, at 4 bytes a
            token. None: all.
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
        ``model``, ``step`` (of a run's checkpoint, else None), ``seq_length``, ``windows`` (as asked), ``bos`` (pieces
        before every text), ``unseen`` (languages that the run did not train on, as far as it says), ``text`` and
        ``items_hash`` (digests of what was read and asked, None without), ``languages`` {tag: loss, bits_per_byte,
        perplexity, tokens, bytes, nats, cloze, sample}, ``cloze`` {items, chance, length_ratio}, and ``items`` for
        :func:`~megatron_moo.evaluate.cloze.write_task`. With ``texts`` also ``documents`` {scored, common} and
        ``relative_to``, and per language ``covered`` (share of its file's bytes) and ``relative`` (nats, in units of
        the nats of ``relative_to``).
    """
    scorer = Scorer(opened.model, opened.max_length, asked.batch_tokens)
    tags = list(texts) if texts else _corpus_tags(opened)
    length = min(asked.seq_length or _run_length(opened) or 512, opened.max_length - len(opened.bos))
    found: dict[str, Any] = {
        "model": opened.name,
        "step": opened.step,
        "seq_length": length,
        "windows": asked.windows,
        "bos": _pieces(opened),
        "unseen": _unseen(opened, tags),
        "text": None,
        "items_hash": None,
        "languages": {},
    }
    if texts:
        most = None if asked.windows is None else asked.windows * length * BYTES_PER_TOKEN
        chosen = choose(texts, most)
        found |= {
            "text": chosen.digest,
            "documents": {"scored": chosen.count, "common": chosen.common},
            "relative_to": tags[0],
        }
        for tag in tags:
            tell(f"{tag}: loss")
            found["languages"][tag] = _aligned_loss(opened, scorer, chosen, tag, length)
        base = found["languages"][tags[0]]["nats"]
        for told in found["languages"].values():
            told["relative"] = told["nats"] / base
    elif tags:
        found["text"] = _corpus_digest(opened, tags)
        for tag in tags:
            tell(f"{tag}: loss")
            found["languages"][tag] = _corpus_loss(opened, scorer, tag, length, asked.windows)
    items = make_items(texts, asked.items) if texts and asked.items else []
    if items:
        found["items_hash"] = items_digest(items, texts)
        ratio = length_ratio(items, texts)
        found["cloze"] = {"items": len(items), "chance": CHANCE, "length_ratio": round(ratio, 3)}
        for tag in tags:
            tell(f"{tag}: cloze")
            found["languages"][tag]["cloze"] = score_cloze(scorer, opened, items, texts[tag])
    if asked.new_tokens:
        for tag in tags:
            prompt = _prompt(opened, tag, texts.get(tag))
            text = continue_text(
                opened.model,
                opened.tokenizer,
                prompt,
                asked.new_tokens,
                opened.max_length,
                asked.temperature,
                bos=opened.bos,
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
        pair(opened.tokenizer, shown.context, "\n" + choice, opened.bos)
        for shown in rendered
        for choice in shown.choices
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


def _aligned_loss(opened: Opened, scorer: Scorer, chosen: Chosen, tag: str, length: int) -> dict[str, Any]:
    ids = opened.tokenizer.encode_batch(chosen.documents[tag])
    requests = whole_text(ids, opened.tokenizer.eod, length, opened.bos)
    nats = -math.fsum(scorer.loglikelihoods(requests))
    targets = sum(len(request.continuation) for request in requests)
    return {**_numbers(nats, targets, chosen.bytes(tag)), "covered": chosen.covered(tag)}


def _corpus_loss(
    opened: Opened, scorer: Scorer, tag: str, length: int, windows: int | None
) -> dict[str, Any]:
    tokens = opened.corpus.stream(tag, "valid")
    nats, targets = scorer.stream(tokens, opened.tokenizer.eod, length, windows)
    # A corpus knows the bytes of all its text: those of the windows that were scored are estimated where not all were.
    return _numbers(nats, targets, int(tokens.bytes) * targets / len(tokens))


def _numbers(nats: float, targets: int, size: float) -> dict[str, Any]:
    return {
        "loss": nats / targets,
        "bits_per_byte": nats / math.log(2) / size,
        "perplexity": math.exp(min(700.0, nats / targets)),
        "tokens": targets,
        "bytes": round(size),
        "nats": nats,
    }


def _pieces(opened: Opened) -> list[str]:
    """How the ids before every text are written."""
    pieces = getattr(opened.tokenizer, "hf", None)
    return [str(pieces.convert_ids_to_tokens(one)) for one in opened.bos] if pieces is not None else []


def _corpus_digest(opened: Opened, tags: Sequence[str]) -> str:
    """Of all held-out tokens, so that corpora of other text, or with another tokenizer, are told apart."""
    told = hashlib.sha256()
    for tag in sorted(tags):
        stream = opened.corpus.stream(tag, "valid")
        told.update(f"{tag} {len(stream)}\n".encode())
        told.update(stream.read(0, len(stream)).astype("<i8").tobytes())
    return told.hexdigest()[:12]


def _unseen(opened: Opened, tags: Sequence[str]) -> list[str]:
    """Those that the run did not train on; none where it does not say."""
    if opened.run is None:
        return []
    from megatron_moo.report.metrics import read_metrics

    try:
        valids = read_metrics(opened.run).valids
    except MooError:  # checkpoints alone can be evaluated too
        valids = []
    seen = {*valids[-1].seen} if valids else set()
    unseen = {*valids[-1].unseen} if valids else set()
    if opened.corpus is not None:  # it also knows languages without held-out text
        unseen |= {*tags} - {*opened.corpus.tags("train")} - seen
    return [tag for tag in tags if tag in unseen]


def _run_length(opened: Opened) -> int | None:
    if opened.run is None:
        return None
    import yaml

    flags = yaml.safe_load((opened.run / "recipe.yaml").read_text(encoding="utf-8"))["flags"]
    return int(flags["seq-length"])


def _corpus_tags(opened: Opened) -> list[str]:
    if opened.corpus is None:
        return []  # tasks of lm-eval may be all that is asked for
    if opened.corpus.sft is not None:
        raise MooError(
            "was fine-tuned on conversations, whose masks are not known here", opened.name, "give --text"
        )
    return list(opened.corpus.tags("valid"))


def _prompt(opened: Opened, tag: str, text: AlignedText | None, characters: int = 80) -> str:
    """The beginning of a language's longest held-out document, whole words where there are spaces."""
    if text is not None:
        whole = max(text.documents.values(), key=len)
    else:
        stream = opened.corpus.stream(tag, "valid")
        whole = opened.tokenizer.decode(stream.read(0, min(len(stream), 4 * characters)).tolist())
    flat = " ".join(whole.split())[: characters + 1]
    cut = flat.rsplit(" ", 1)[0]
    return cut if len(cut) > characters // 2 else flat[:characters]
