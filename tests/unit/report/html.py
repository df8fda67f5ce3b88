"""Looking into a page without a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import html5lib

SVG = "{http://www.w3.org/2000/svg}"


class Page:
    """A page parsed by html5lib in strict mode: any parse error raises."""

    def __init__(self, path: Path) -> None:
        self.text = path.read_text(encoding="utf-8")
        self.root: Element = html5lib.HTMLParser(strict=True, namespaceHTMLElements=False).parse(self.text)

    def plots(self) -> dict[str, Element]:
        """Figures by name."""
        found = {figure.get("data-plot", ""): figure for figure in self.root.iter("figure")}
        assert len(found) == len(list(self.root.iter("figure"))), "two plots of one name"
        return found

    def data(self, plot: str) -> Any:
        """What a plot gives to the script."""
        scripts = list(self.plots()[plot].iter("script"))
        assert len(scripts) == 1
        return json.loads(scripts[0].text or "")

    def paths(self, plot: str) -> list[Element]:
        """SVG paths of a plot."""
        return list(self.plots()[plot].iter(f"{SVG}path"))

    def words(self, plot: str | None = None) -> str:
        """Visible text of a plot or of the page."""
        element = self.plots()[plot] if plot else self.root
        return " ".join(_visible(element))


def _visible(element: Element) -> list[str]:
    if element.tag in ("script", "style"):
        return []
    words = [element.text.strip()] if element.text and element.text.strip() else []
    for child in element:
        words += _visible(child)
        if child.tail and child.tail.strip():
            words.append(child.tail.strip())
    return words
