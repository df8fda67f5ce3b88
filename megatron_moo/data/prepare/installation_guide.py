"""Debian's installation guide in 19 languages, from the ``installation-guide-amd64`` package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_moo.data.prepare.fetch import debian_packages
from megatron_moo.data.prepare.html_blocks import blocks
from megatron_moo.data.prepare.writing import choose, held_out, write_jsonl, write_manifest

LICENCE = "GPL-2 (the Debian Installer team and the translators); not bundled here, fetched on request"
_SAME = "ca cs da de el en es fr id it ja ko nl pt ro ru sv vi"
LANGUAGES = {tag: tag for tag in _SAME.split()} | {"zh-Hans": "zh_CN"}
HELD_OUT_PERCENT = 10


def prepare(out: Path, tags: Sequence[str] | None = None) -> list[str]:
    """Write train/ and valid/TAG.jsonl (one page a record: id, text), languages.yaml and PROVENANCE.md."""
    chosen = choose("installation-guide", tags, LANGUAGES)
    with tempfile.TemporaryDirectory() as folder:
        root = debian_packages(["installation-guide-amd64"], Path(folder))[0]
        version = (root / "VERSION").read_text()
        lines = [_write(out, tag, root / "usr/share/doc/installation-guide-amd64") for tag in chosen]
    head = "# Debian's installation guide (GPL-2), one document a page.\ntokenizer: byte\nsampling: uniform"
    write_manifest(out / "languages.yaml", chosen, head)
    (out / "PROVENANCE.md").write_text(
        "# Where these texts come from\n\n"
        f"Debian package installation-guide-amd64, version {version}.\nLicence: "
        f"{LICENCE}.\n"
        "Made by `megatron-moo data prepare installation-guide`. Kept: paragraphs and headings of each "
        "page; pages with "
        f"CRC-32(name) % 100 < {HELD_OUT_PERCENT} are held out, the same ones in every language.\n",
        encoding="utf-8",
    )
    return lines


def records(folder: Path, tag: str) -> Iterator[dict[str, str]]:
    """One record per page that has text; the licence's own page (the GPL, in English everywhere) is left
    out."""
    # English pages end in .html, translated ones in .html or .LANGUAGE.html: the name before the first dot
    # is the page.
    for file in sorted(folder.glob("*.html")):
        page = file.name.split(".")[0]
        text = "\n".join(block.text for block in blocks(file.read_text(encoding="utf-8")) if block.text)
        if text and not page.startswith(("apf", "index")):
            yield {"id": page, "text": text}


def _write(out: Path, tag: str, guide: Path) -> str:
    found = list(records(guide / LANGUAGES[tag], tag))
    train = write_jsonl(
        out / f"train/{tag}.jsonl", (r for r in found if not held_out(r["id"], HELD_OUT_PERCENT))
    )
    valid = write_jsonl(out / f"valid/{tag}.jsonl", (r for r in found if held_out(r["id"], HELD_OUT_PERCENT)))
    return f"{tag}: {train[0]} + {valid[0]} pages, {(train[1] + valid[1]) / 1e3:.0f} kB"
