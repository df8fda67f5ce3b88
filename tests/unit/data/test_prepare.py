"""Corpora from registries: the parsing, on small pages (the downloads themselves need a network)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest

from megatron_moo.data.prepare import catalogue, chatterbot, libreoffice_help, udhr
from megatron_moo.data.prepare.fetch import run
from megatron_moo.data.prepare.html_blocks import blocks
from megatron_moo.errors import MooError


def test_udhr_articles() -> None:
    html = "<body><h1>T</h1><header><h2>Pre</h2><p>am\n ble</p></header>" + "".join(
        f'<article data-number="{n}"><h2>Art {n}</h2>'
        "<ol><li><p>a &amp; b</p></li><li><p>c</p></li></ol></article>"
        for n in range(1, 31)
    )
    found = udhr.articles(html)
    assert found[0] == "Pre\nam ble"
    assert found[7] == "Art 7\na & b\nc"
    with pytest.raises(MooError, match=r"articles \[30\] are missing"):
        udhr.articles(html.replace('data-number="30"', 'data-number="29"'))


def test_html_blocks_keep_order_class_and_text() -> None:
    page = '<h2 class="a">Title</h2><p id="x" class="code b">f(<b>x</b>)</p><pre>no</pre><p>1\n &lt; 2</p>'
    assert blocks(page) == [("Title", "a"), ("f(x)", "code b"), ("1 < 2", "")]


def _pages(root: Path, folder: str, texts: list[list[str]]) -> None:
    text = root / "usr/share/libreoffice/help" / folder / "text"
    text.mkdir(parents=True)
    for number, page in enumerate(texts):
        body = "".join(f"<p>{one}</p>" for one in page)
        (text / f"page{number}.html").write_text(
            f'<p>menu</p><div id="DisplayArea">{body}</div>', encoding="utf-8"
        )


def test_libreoffice_rows_are_aligned_and_cleaned_by_the_english_text(tmp_path: Path) -> None:
    long = "A sentence that is long enough, number "
    _pages(tmp_path, "en-US", [[long + "1", "short", long + "2"], [long + "1", long + "3"], [long + "4"]])
    german = [
        ["Ein Satz 1", "kurz", long + "2"],
        ["Ein Satz 1", "Ein Satz 3"],
        ["Ein Satz 4", "einer zu viel"],
    ]
    _pages(tmp_path, "de", german)
    english = libreoffice_help.read_pages(tmp_path, "en")
    keep = libreoffice_help.unique_blocks(english)
    assert keep == {"page0.html": [0, 2], "page1.html": [1], "page2.html": [0]}
    found = list(libreoffice_help.records("de", libreoffice_help.read_pages(tmp_path, "de"), english, keep))
    assert found == [
        {"id": "page0.html", "blocks": [0], "text": "Ein Satz 1"},
        {"id": "page1.html", "blocks": [1], "text": "Ein Satz 3"},
    ], "untranslated, repeated and short blocks go, and a page that does not align"


def test_chatterbot_turns_alternate_and_a_last_question_goes() -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr(
            "chatterbot_corpus/data/italian/a.yml",
            "conversations:\n- - Ciao\n  - Salve\n  - Come va\n- - Ciao\n  - Salve\n"
            "- - solo\n- - anno\n  - 1999\n",
        )
        file.writestr("chatterbot_corpus/data/german/a.yml", "conversations:\n- - Hallo\n  - Tag\n")
    with zipfile.ZipFile(data) as wheel:
        found = list(chatterbot.conversations(wheel, "italian"))
    turns = [[(m["role"], m["content"]) for m in talk["messages"]] for talk in found]
    assert turns == [
        [("user", "Ciao"), ("assistant", "Salve")],
        [("user", "anno"), ("assistant", "1999")],
    ]


def test_unknown_names_and_failing_registries_are_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(MooError, match=r"unknown corpus 'wiki'.*choose one of udhr, libreoffice-help"):
        catalogue.prepare("wiki", tmp_path)
    with pytest.raises(MooError, match="data prepare chatterbot: no language 'xx'"):
        catalogue.prepare("chatterbot", tmp_path, ["xx"])
    with pytest.raises(MooError, match=r"`sh -c echo.*failed: no such package; ask again"):
        run(["sh", "-c", "echo no such package >&2; exit 3"], tmp_path, "ask again")
