"""Aligned cloze: a context, and its true continuation among four paragraphs of similar length.

XStoryCloze-like (Lin et al. 2022): the same items, distractors and positions in every language, so that accuracies
compare between languages. Nobody wrote or checked the distractors, they are paragraphs of other pages; the task says
whether a model ties a paragraph to its page, not whether it understands it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from megatron_moo.evaluate.aligned import AlignedText, Key

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


def make_items(
    texts: Mapping[str, AlignedText], count: int, least: int = 40, most: int = 400, before: int = 2
) -> list[Item]:
    """Items whose paragraphs exist in every language.

    Args:
        texts: aligned text per language; the first language's lengths decide which paragraphs are similar.
        count: at most so many, spread by a hash of their names.
        least, most: characters of a continuation in the first language.
        before: paragraphs of context.
    """
    first = next(iter(texts.values()))
    common = set.intersection(*(set(text.paragraphs) for text in texts.values()))
    if not first.numbered:
        return _halved(first, sorted(common), count)
    usable = {key: text for key in sorted(common) if least <= len(text := first.paragraphs[key]) <= most}
    items: list[Item] = []
    for key in sorted(usable, key=_hash):
        context = tuple(k for k in sorted(common) if k[0] == key[0] and key[1] - before <= k[1] < key[1])
        others = _similar(key, usable)
        if context and len(others) == CHOICES - 1 and len(items) < count:
            items.append(_placed(context, key, others))
    return items


def _halved(first: AlignedText, common: Sequence[Key], count: int) -> list[Item]:
    usable = {key: first.paragraphs[key] for key in common}
    items = []
    for key in sorted(usable, key=_hash)[:count]:
        others = _similar(key, usable)
        if len(others) == CHOICES - 1:
            items.append(_placed((key,), key, others, halves=True))
    return items


def _similar(key: Key, usable: Mapping[Key, str]) -> list[Key]:
    """Three paragraphs of three other documents, nearest in length; none with the same text."""
    length, found, documents = len(usable[key]), [], {key[0]}
    texts = {usable[key]}
    for other in sorted(usable, key=lambda k: (abs(len(usable[k]) - length), _hash(k))):
        if other[0] not in documents and usable[other] not in texts:
            found.append(other)
            documents.add(other[0])
            texts.add(usable[other])
        if len(found) == CHOICES - 1:
            break
    return found


def _placed(context: tuple[Key, ...], key: Key, others: list[Key], halves: bool = False) -> Item:
    answer = _hash(key) % CHOICES
    return Item(context, (*others[:answer], key, *others[answer:]), answer, halves)


def _hash(key: Key) -> int:
    return crc32(f"{key[0]}#{key[1]}".encode())


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
