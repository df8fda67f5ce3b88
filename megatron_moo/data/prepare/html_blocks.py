"""Paragraphs and headings of an HTML page, in order."""

from __future__ import annotations

import html
import re
from typing import NamedTuple

_BLOCK = re.compile(r"<(p|h[1-6])\b([^>]*)>(.*?)</\1>", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
_CLASS = re.compile(r'class="([^"]*)"')


class HtmlBlock(NamedTuple):
    """One <p> or <h1..6>: its text on one line, and its class attribute."""

    text: str
    css: str


def blocks(page: str) -> list[HtmlBlock]:
    """All blocks of a page."""
    found = []
    for _, attributes, inner in _BLOCK.findall(page):
        css = _CLASS.search(attributes)
        text = " ".join(html.unescape(_TAG.sub("", inner)).replace("\x00", "").split())
        found.append(HtmlBlock(text, css.group(1) if css else ""))
    return found
