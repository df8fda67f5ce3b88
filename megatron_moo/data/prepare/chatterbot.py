"""ChatterBot's conversations in 28 languages, from PyPI's ``chatterbot-corpus``: small talk and questions
for fine-tuning.

Real, small, of mixed quality, not aligned: right for trying the pipeline, not for a claim about quality.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from megatron_moo.data.prepare.fetch import python_wheel
from megatron_moo.data.prepare.writing import choose, held_out, write_jsonl, write_manifest

PACKAGE = "chatterbot-corpus==1.3.3"
LICENCE = "BSD-3-Clause (Gunther Cox and contributors)"
LANGUAGES = {
    "fa": "persian", "en": "english", "uk": "ukrainian", "it": "italian", "ja": "japanese", "ko": "korean",
    "es": "spanish", "zh-Hans": "chinese", "zh-Hant": "traditionalchinese", "pt": "portuguese", "nl": "dutch",
    "id": "indonesian", "tr": "turkish", "de": "german", "bn": "bengali", "sv": "swedish", "fr": "french",
    "mr": "marathi", "he": "hebrew", "hi": "hindi", "ru": "russian", "hi-Latn": "hinglish", "or": "oriya",
    "ta": "tamil", "te": "telugu", "th": "thai", "ur": "urdu", "yo": "yoruba",
}  # fmt: skip
HELD_OUT_PERCENT = 10


def prepare(out: Path, tags: Sequence[str] | None = None) -> list[str]:
    """Write train/ and valid/TAG.jsonl (``messages``), languages.yaml and PROVENANCE.md."""
    chosen = choose("chatterbot", tags, LANGUAGES)
    lines, has_valid = [], {}
    with (
        tempfile.TemporaryDirectory() as folder,
        zipfile.ZipFile(python_wheel(PACKAGE, Path(folder))) as wheel,
    ):
        for tag in chosen:
            found = list(conversations(wheel, LANGUAGES[tag]))
            train = write_jsonl(out / f"train/{tag}.jsonl", (r for r in found if not _held(r)))
            valid = write_jsonl(out / f"valid/{tag}.jsonl", (r for r in found if _held(r)))
            has_valid[tag] = valid[0] > 0
            lines.append(
                f"{tag}: {train[0]} + {valid[0]} conversations, {(train[1] + valid[1]) / 1e3:.0f} kB"
            )
    head = (
        "# ChatterBot's conversations (BSD), for supervised fine-tuning.\n"
        "tokenizer: byte\nsampling: uniform\n"
        "sft: {template: plain, max_length: 512, truncation: turns}"
    )
    write_manifest(out / "languages.yaml", chosen, head, has_valid)
    (out / "PROVENANCE.md").write_text(
        f"# Where these texts come from\n\nPyPI {PACKAGE}; licence {LICENCE}.\n"
        "Made by `megatron-moo data prepare chatterbot`. "
        "Turns alternate between user and assistant; a last turn of the user is dropped. "
        f"Conversations with CRC-32(first turn) % 100 < {HELD_OUT_PERCENT} are held out.\n",
        encoding="utf-8",
    )
    return lines


def _wheel(folder: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(python_wheel(PACKAGE, folder))


def _held(record: dict[str, Any]) -> bool:
    return held_out(record["messages"][0]["content"], HELD_OUT_PERCENT)


def conversations(wheel: zipfile.ZipFile, folder: str) -> Iterator[dict[str, Any]]:
    """The conversations of one language's folder, each once."""
    seen: set[tuple[str, ...]] = set()
    for name in sorted(wheel.namelist()):
        if f"/data/{folder}/" not in f"/{name}" or not name.endswith((".yml", ".yaml")):
            continue
        data = yaml.safe_load(wheel.read(name).decode("utf-8"))
        for talk in (data or {}).get("conversations") or []:
            turns = tuple(" ".join(str(turn).split()) for turn in talk if turn is not None)
            turns = turns[: len(turns) // 2 * 2]
            if turns and all(turns) and turns not in seen:
                seen.add(turns)
                roles = ("user", "assistant")
                yield {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}
