"""Aligned held-out text: the same paragraphs in every language, by name.

TAG.jsonl   {"id": page, "blocks": [numbers], "text": "a line per block"}     (libreoffice-help)
TAG.txt     paragraphs separated by blank lines, the n-th of one language translates the n-th of another (udhr)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from megatron_moo.errors import MooError

Key = tuple[str, int]  # document, paragraph


@dataclass
class AlignedText:
    """One language.

    Attributes:
        documents: whole texts by name, whether other languages have them or not.
        paragraphs: by (document, number).
        numbered: whether a document has several numbered paragraphs (else a document is one paragraph).
    """

    documents: dict[str, str] = field(default_factory=dict)
    paragraphs: dict[Key, str] = field(default_factory=dict)
    numbered: bool = False

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return sum(len(text.encode()) for text in self.documents.values())


@dataclass(frozen=True)
class Chosen:
    """The same documents in every language.

    Attributes:
        names: of the documents, in an order that neither languages nor files decide.
        documents: per language, their texts in that order: the paragraphs that every language has.
        common: how many documents there are to choose from.
        sizes: UTF-8 bytes of all that a language's file holds.
        digest: twelve hex digits that tell whether two evaluations saw the same text.
    """

    names: list[str]
    documents: dict[str, list[str]]
    common: int
    sizes: dict[str, int]

    @property
    def count(self) -> int:
        """Documents chosen."""
        return len(self.names)

    def bytes(self, tag: str) -> int:
        """UTF-8 bytes of a language's chosen text."""
        return sum(len(text.encode()) for text in self.documents[tag])

    def covered(self, tag: str) -> float:
        """Share of a language's file, in bytes, that was chosen."""
        return self.bytes(tag) / max(1, self.sizes[tag])

    @property
    def digest(self) -> str:
        return digest(self.documents)


def digest(texts: Mapping[str, list[str]]) -> str:
    """Twelve hex digits of SHA-256 over texts by language; the order of the languages does not matter."""
    told = json.dumps({tag: texts[tag] for tag in sorted(texts)}, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def hashed(key: Key) -> int:
    """What orders documents and paragraphs: as good as chance, and the same everywhere."""
    return crc32(f"{key[0]}#{key[1]}".encode())


def common_keys(texts: Mapping[str, AlignedText]) -> list[Key]:
    """Paragraphs that every language has, sorted."""
    return sorted(set.intersection(*(set(text.paragraphs) for text in texts.values())))


def choose(texts: Mapping[str, AlignedText], most: int | None = None) -> Chosen:
    """Whole documents for a loss, of the paragraphs that every language has.

    Args:
        texts: aligned text per language.
        most: documents are added, by a hash of their names, until the first language (by its tag) has so many bytes;
            None takes all.

    Raises:
        MooError: no paragraph is in every language.
    """
    keys: dict[str, list[Key]] = {}
    for key in common_keys(texts):
        keys.setdefault(key[0], []).append(key)
    if not keys:
        raise MooError(
            f"no paragraph is in all of {', '.join(sorted(texts))}",
            "--text",
            "give text of the same pages, or fewer --languages",
        )
    whole = {
        tag: {name: "\n".join(text.paragraphs[key] for key in of) for name, of in keys.items()}
        for tag, text in texts.items()
    }
    first, size = whole[min(texts)], 0
    names: list[str] = []
    for name in sorted(keys, key=lambda name: (hashed((name, 0)), name)):
        if most is not None and names and size >= most:
            break
        names.append(name)
        size += len(first[name].encode())
    return Chosen(
        names,
        {tag: [of[name] for name in names] for tag, of in whole.items()},
        len(keys),
        {tag: text.bytes for tag, text in texts.items()},
    )


def read_aligned(folder: Path, tags: list[str] | None = None) -> dict[str, AlignedText]:
    """Every language of a folder, or those asked for.

    Raises:
        MooError: a language that is not there, or a file that is neither kind.
    """
    there = {path.stem: path for path in sorted(folder.glob("*")) if path.suffix in (".jsonl", ".txt")}
    if not there:
        raise MooError("no TAG.jsonl or TAG.txt", str(folder), "give a folder of aligned text")
    missing = [tag for tag in tags or [] if tag not in there]
    if missing:
        raise MooError(f"no text of {missing[0]}", str(folder), f"there are {', '.join(there)}")
    return {tag: _read(there[tag]) for tag in tags or there}


def _read(path: Path) -> AlignedText:
    found = AlignedText()
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        parts = [part.strip() for part in text.split("\n\n") if part.strip()]
        found.documents = {f"{number}": part for number, part in enumerate(parts)}
        found.paragraphs = {(name, 0): part for name, part in found.documents.items()}
        return found
    found.numbered = True
    for number, line in enumerate(text.splitlines(), 1):
        try:
            record = json.loads(line)
            lines, blocks = record["text"].split("\n"), record["blocks"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise MooError(f"no record with id, blocks and text ({error})", f"{path}:{number}") from None
        if len(lines) != len(blocks):
            raise MooError(f"{len(blocks)} blocks but {len(lines)} lines", f"{path}:{number}")
        found.documents[str(record["id"])] = record["text"]
        for block, paragraph in zip(blocks, lines, strict=True):
            found.paragraphs[str(record["id"]), int(block)] = paragraph
    return found
