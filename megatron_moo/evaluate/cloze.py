"""Aligned cloze: a context, and its true continuation among four paragraphs of similar length in every language.

XStoryCloze-like (Lin et al. 2022): the same items, distractors and positions in every language, so that accuracies
compare between languages. Nobody wrote or checked the distractors, they are paragraphs of other pages; the task says
whether a model ties a paragraph to its page, not whether it understands it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_moo.evaluate.aligned import AlignedText, Key, common_keys, digest, hashed

CHOICES = 4
CHANCE = 1.0 / CHOICES


@dataclass(frozen=True)
class Item:
    """One item, the same in every language.

    Attributes:
        context: paragraphs before the continuation.
        choices: keys of the four candidates; ``answer`` is the place of the true one.
        halves: documents are cut in two: the context is a first half, the choices are second halves.
    """

    context: tuple[Key, ...]
    choices: tuple[Key, ...]
    answer: int
    halves: bool = False


@dataclass(frozen=True)
class Rendered:
    """An item in one language."""

    context: str
    choices: tuple[str, ...]
    answer: int


# Choices of an item differ in length by at most this factor, in every language; the next one is tried where fewer than
# FEWEST items are found, the last one allows anything.
RATIOS = (1.5, 2.0, 3.0, 5.0, math.inf)
FEWEST = 5


def make_items(
    texts: Mapping[str, AlignedText], count: int, least: int = 40, most: int = 400, before: int = 2
) -> list[Item]:
    """Items whose paragraphs exist in every language; the order of the languages does not matter.

    Args:
        texts: aligned text per language.
        count: at most so many, spread by a hash of their names.
        least, most: characters of a continuation, mean over the languages.
        before: paragraphs of context.
    """
    texts = {tag: texts[tag] for tag in sorted(texts)}
    common = common_keys(texts)
    if all(text.numbered for text in texts.values()):
        shown = {key: tuple(text.paragraphs[key] for text in texts.values()) for key in common}
        usable = {
            key: of
            for key, of in shown.items()
            if all(of) and least * len(of) <= sum(map(len, of)) <= most * len(of)
        }
        contexts = _before(common, before)
        halves = False
    else:
        usable = {
            key: of for key in common if all(of := tuple(_cut(t.paragraphs[key])[1] for t in texts.values()))
        }
        contexts = {key: (key,) for key in usable}
        halves = True
    found: list[Item] = []
    for ratio in RATIOS:
        found = _find(usable, contexts, count, ratio, halves)
        if len(found) >= min(count, FEWEST):
            break
    return found


def _before(common: Sequence[Key], before: int) -> dict[Key, tuple[Key, ...]]:
    """Per paragraph, those of its document that are at most ``before`` numbers before it."""
    there = set(common)
    numbers = range(before, 0, -1)
    return {
        (name, at): tuple((name, at - n) for n in numbers if (name, at - n) in there) for name, at in common
    }


def _find(
    usable: Mapping[Key, tuple[str, ...]],
    contexts: Mapping[Key, tuple[Key, ...]],
    count: int,
    ratio: float,
    halves: bool,
) -> list[Item]:
    """Items of ``usable``, whose values are a paragraph's texts in every language."""
    keys = sorted(usable, key=lambda key: (hashed(key), key))
    logs = np.log(np.array([[len(text) for text in usable[key]] for key in keys], dtype=np.float64))
    items: list[Item] = []
    for place, key in enumerate(keys):
        if len(items) == count:
            break
        if contexts[key] and len(others := _similar(place, keys, logs, usable, ratio)) == CHOICES - 1:
            items.append(_placed(contexts[key], key, others, halves))
    return items


def _similar(
    place: int, keys: Sequence[Key], logs: np.ndarray, usable: Mapping[Key, tuple[str, ...]], ratio: float
) -> list[Key]:
    """Three paragraphs of three other documents, nearest in length in the language where they are least alike.

    None has the text of another in any language; the longest of the four is at most ``ratio`` times the shortest, in
    every language.

    Args:
        place: of the true continuation in ``keys``.
        logs: ``[keys, languages]``, logarithms of the lengths in characters.
    """
    low, high = logs[place].copy(), logs[place].copy()
    found: list[Key] = []
    documents, texts = {keys[place][0]}, [usable[keys[place]]]
    apart = np.abs(logs - logs[place]).max(1)
    for other in np.argsort(apart, kind="stable"):  # of equal ones, by the hash that orders the keys
        key = keys[other]
        lower, higher = np.minimum(low, logs[other]), np.maximum(high, logs[other])
        if apart[other] > math.log(ratio) + _ROUND:
            break
        same = any(one == two for of in texts for one, two in zip(of, usable[key], strict=True))
        if key[0] in documents or same or float((higher - lower).max()) > math.log(ratio) + _ROUND:
            continue
        low, high = lower, higher
        found.append(key)
        documents.add(key[0])
        texts.append(usable[key])
        if len(found) == CHOICES - 1:
            break
    return found


def _placed(context: tuple[Key, ...], key: Key, others: list[Key], halves: bool = False) -> Item:
    answer = hashed(key) % CHOICES
    return Item(context, (*others[:answer], key, *others[answer:]), answer, halves)


_ROUND = 1e-12  # of a logarithm: a factor of exactly 1.5 is allowed


def length_ratio(items: Sequence[Item], texts: Mapping[str, AlignedText]) -> float:
    """Longest choice over shortest, in characters: the largest of all items and languages; 1 without an item."""
    largest = 1.0
    for text in texts.values():
        for item in items:
            lengths = [len(choice) for choice in render(item, text).choices]
            largest = max(largest, max(lengths) / min(lengths))
    return largest


def items_digest(items: Sequence[Item], texts: Mapping[str, AlignedText]) -> str | None:
    """Twelve hex digits that tell whether two evaluations asked the same; None without an item."""
    if not items:
        return None
    shown = {tag: [render(item, text) for item in items] for tag, text in texts.items()}
    return digest(
        {tag: [json.dumps(asdict(one), ensure_ascii=False) for one in of] for tag, of in shown.items()}
    )


def render(item: Item, text: AlignedText) -> Rendered:
    """The item in one language."""
    if item.halves:
        return Rendered(
            _cut(text.paragraphs[item.context[0]])[0],
            tuple(_cut(text.paragraphs[key])[1] for key in item.choices),
            item.answer,
        )
    context = "\n".join(text.paragraphs[key] for key in item.context)
    return Rendered(context, tuple(text.paragraphs[key] for key in item.choices), item.answer)


def _cut(text: str) -> tuple[str, str]:
    """Two halves, at the space nearest to the middle, or in the middle of a text without spaces."""
    flat = " ".join(text.split())
    middle = len(flat) // 2
    spaces = [i for i, c in enumerate(flat) if c == " "]
    near = min(spaces, key=lambda i: abs(i - middle), default=middle)
    at = near if abs(near - middle) <= len(flat) // 4 else middle
    return flat[:at].strip(), flat[at:].strip()


def write_task(items: Sequence[Item], texts: Mapping[str, AlignedText], folder: Path) -> None:
    """The same items as task files of lm-evaluation-harness: ``moo_cloze_TAG`` per language.

    Args:
        folder: where; a relative one makes tasks that work from the present working folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for tag, text in texts.items():
        lines = []
        for item in items:
            shown = render(item, text)
            lines.append(
                json.dumps(
                    {"context": shown.context, "choices": shown.choices, "answer": shown.answer},
                    ensure_ascii=False,
                )
            )
        data = folder / f"{tag}.jsonl"
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        task = {
            "task": f"moo_cloze_{tag}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "answer",
            "target_delimiter": "\n",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True}
                for name in ("acc", "acc_norm")
            ],
            "metadata": {"version": 1.0},
        }
        import yaml

        (folder / f"{tag}.yaml").write_text(yaml.safe_dump(task, sort_keys=False), encoding="utf-8")


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % interval of a share (``(0, 1)`` for no item)."""
    if count == 0:
        return 0.0, 1.0
    share, scale = right / count, 1 + z * z / count
    middle = (share + z * z / (2 * count)) / scale
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / scale
    return middle - half, middle + half
