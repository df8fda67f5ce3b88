"""LibreOffice's help in 22 languages, aligned paragraph by paragraph, from Debian's ``libreoffice-help-*``
packages.

Every language has the same pages with the same number of blocks, so (page, block) aligns paragraphs. A
narrow domain,
software help, and repetitive: losses on it look low and say little about other text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_moo.data.prepare.fetch import debian_packages
from megatron_moo.data.prepare.html_blocks import HtmlBlock, blocks
from megatron_moo.data.prepare.writing import choose, held_out, write_jsonl, write_manifest
from megatron_moo.errors import MooError

LICENCE = "MPL-2.0 (The Document Foundation and the translators)"
# tag: (suffix of the Debian package, folder in it)
LANGUAGES = {
    "en": ("en-us", "en-US"), "de": ("de", "de"), "fr": ("fr", "fr"), "it": ("it", "it"), "el": ("el", "el"),
    "eu": ("eu", "eu"), "es": ("es", "es"), "pl": ("pl", "pl"), "ca": ("ca", "ca"), "ru": ("ru", "ru"),
    "hu": ("hu", "hu"), "id": ("id", "id"), "pt": ("pt", "pt"), "tr": ("tr", "tr"),
    "zh-Hans": ("zh-cn", "zh-CN"),
    "ja": ("ja", "ja"), "ko": ("ko", "ko"), "vi": ("vi", "vi"), "fi": ("fi", "fi"), "km": ("km", "km"),
    "dz": ("dz", "dz"), "hi": ("hi", "hi"),
}  # fmt: skip
HELD_OUT_PERCENT = 6
_SHORTEST = 20
Pages = dict[str, list[HtmlBlock]]


def prepare(out: Path, tags: Sequence[str] | None = None) -> list[str]:
    """Write train/ and valid/TAG.jsonl (one page a record: id, blocks, text), languages.yaml and
    PROVENANCE.md.

    ``text`` has one block a line and ``blocks`` their numbers in the page, so equal (id, block) align
    between languages.

    Returns:
        One line of report per language.
    """
    chosen = choose("libreoffice-help", tags, LANGUAGES)
    with tempfile.TemporaryDirectory() as folder:
        needed = list(dict.fromkeys(["en", *chosen]))
        roots = debian_packages([f"libreoffice-help-{LANGUAGES[tag][0]}" for tag in needed], Path(folder))
        sources = dict(zip(needed, roots, strict=True))
        version = (roots[0] / "VERSION").read_text()
        english = read_pages(sources["en"], "en")
        keep = unique_blocks(english)
        lines = [_write(out, tag, english, keep, sources[tag]) for tag in chosen]
    head = "# LibreOffice's help (MPL-2.0), one document a page. Narrow domain.\n"
    head += "tokenizer: byte\nsampling: proportional"
    write_manifest(out / "languages.yaml", chosen, head)
    (out / "PROVENANCE.md").write_text(_provenance(version), encoding="utf-8")
    return lines


def read_pages(root: Path, tag: str) -> Pages:
    """Blocks of every page after its DisplayArea, by the page's path below text/."""
    text = root / "usr/share/libreoffice/help" / LANGUAGES[tag][1] / "text"
    pages: Pages = {}
    for file in sorted(text.rglob("*.html")):
        _, found, body = file.read_text(encoding="utf-8", errors="strict").partition('id="DisplayArea"')
        if found:
            pages[str(file.relative_to(text))] = blocks(body)
    if not pages:
        raise MooError(
            "no help pages in the package", f"libreoffice-help-{LANGUAGES[tag][0]}", "another version?"
        )
    return pages


def unique_blocks(english: Pages) -> dict[str, list[int]]:
    """Blocks to keep, decided on the English text alone so that all languages lose the same rows.

    Dropped are headings of links, code, texts under 20 characters, and what stood on an earlier page.
    """
    seen: set[str] = set()
    keep: dict[str, list[int]] = {}
    for page, found in english.items():
        for number, block in enumerate(found):
            if (
                "howtogetheader" in block.css
                or "code" in block.css
                or len(block.text) < _SHORTEST
                or block.text in seen
            ):
                continue
            seen.add(block.text)
            keep.setdefault(page, []).append(number)
    return keep


def records(tag: str, pages: Pages, english: Pages, keep: dict[str, list[int]]) -> Iterator[dict[str, Any]]:
    """One record per page: translated blocks only (a block equal to the English one was not translated)."""
    for page, numbers in keep.items():
        found = pages.get(page, [])
        if len(found) != len(english[page]):
            continue
        own = [
            n for n in numbers if found[n].text and (tag == "en" or found[n].text != english[page][n].text)
        ]
        if own:
            yield {"id": page, "blocks": own, "text": "\n".join(found[n].text for n in own)}


def _write(out: Path, tag: str, english: Pages, keep: dict[str, list[int]], root: Path) -> str:
    pages = english if tag == "en" else read_pages(root, tag)
    found = list(records(tag, pages, english, keep))
    train = write_jsonl(
        out / f"train/{tag}.jsonl", (r for r in found if not held_out(r["id"], HELD_OUT_PERCENT))
    )
    valid = write_jsonl(out / f"valid/{tag}.jsonl", (r for r in found if held_out(r["id"], HELD_OUT_PERCENT)))
    rows = sum(len(record["blocks"]) for record in found)
    misfits = sum(1 for page in keep if len(pages.get(page, [])) != len(english[page]))
    share = 100 * (1 - rows / sum(map(len, keep.values())))
    size = (train[1] + valid[1]) / 1e6
    return (
        f"{tag}: {train[0]} + {valid[0]} pages, {rows} paragraphs, {size:.2f} MB, "
        f"{share:.0f} % untranslated, {misfits} pages without alignment"
    )


def _provenance(version: str) -> str:
    return (
        "# Where these texts come from\n\n"
        f"Debian packages libreoffice-help-LANGUAGE, version {version}; licence {LICENCE}.\n"
        "Made by `megatron-moo data prepare libreoffice-help`. Kept: paragraphs and headings of each page, "
        "without code, "
        "link headings, texts under 20 characters, repeated English texts and untranslated "
        "blocks. Pages with "
        f"CRC-32(path) % 100 < {HELD_OUT_PERCENT} are held out, the same ones in every language.\n"
        "Domain: software help. Narrow and repetitive; not a measure of general language ability.\n"
    )
