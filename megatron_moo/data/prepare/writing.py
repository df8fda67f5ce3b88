"""What the prepared corpora have in common: JSONL files, a manifest, a note of provenance."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError


def held_out(key: str, percent: int) -> bool:
    """Whether a page or conversation belongs to the validation split: decided by the CRC-32 of its name."""
    return zlib.crc32(key.encode()) % 100 < percent


def write_jsonl(path: Path, records: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Write records; (how many, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = size = 0
    with path.open("wb") as file:
        for record in records:
            size += file.write((json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8"))
            count += 1
    return count, size


def write_manifest(
    path: Path, tags: Iterable[str], head: str, valid: Mapping[str, bool] | None = None
) -> None:
    """languages.yaml with train/TAG.jsonl and valid/TAG.jsonl (the latter where ``valid`` says so)."""
    lines = [head.rstrip(), "languages:"]
    for tag in tags:
        held = f", valid: [valid/{tag}.jsonl]" if valid is None or valid[tag] else ""
        lines.append(f"  {tag}: {{train: [train/{tag}.jsonl]{held}}}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def choose(name: str, tags: Sequence[str] | None, known: Iterable[str]) -> list[str]:
    """The chosen languages, all when ``tags`` is None; MooError for one that the corpus does not have."""
    known = list(known)
    for tag in tags or []:
        if tag not in known:
            raise MooError(f"no language {tag!r}", f"data prepare {name}", f"known: {', '.join(known)}")
    return known if tags is None else list(tags)
