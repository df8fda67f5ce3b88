"""Aligned held-out text: the same paragraphs in every language, by name.

TAG.jsonl   {"id": page, "blocks": [numbers], "text": "a line per block"}     (libreoffice-help)
TAG.txt     paragraphs separated by blank lines, the n-th of one language translates the n-th of another (udhr)
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_moo.errors import MooError

Key = tuple[str, int]  # document, paragraph


@dataclass
class AlignedText:
    """One language.

    Attributes:
        documents: whole texts, for losses.
        paragraphs: by (document, number).
        numbered: whether a document has several numbered paragraphs (else a document is one paragraph).
    """

    documents: list[str] = field(default_factory=list)
    paragraphs: dict[Key, str] = field(default_factory=dict)
    numbered: bool = False

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return sum(len(text.encode()) for text in self.documents)


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
        found.documents = [part.strip() for part in text.split("\n\n") if part.strip()]
        found.paragraphs = {(f"{number}", 0): part for number, part in enumerate(found.documents)}
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
        found.documents.append(record["text"])
        for block, paragraph in zip(blocks, lines, strict=True):
            found.paragraphs[record["id"], int(block)] = paragraph
    return found
