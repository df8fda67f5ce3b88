"""Pages: one HTML file each, from one base template, with style, script and colours inside."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from megatron_moo import __version__
from megatron_moo.errors import MooError
from megatron_moo.report.charts import palette

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    title: str
    value: str
    detail: str


def fill(template: str, **words: Any) -> str:
    """A page as text; ``words`` are what ``templates/base.html.j2`` and the template itself ask for."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    script = Markup(_read("page.js"))
    return environment.get_template(template).render(
        style=_style(), script=script, version=__version__, **words
    )


def put(path: Path, page: str) -> Path:
    """Write a page to ``path``; whoever opens it never sees half of it.

    Raises:
        MooError: the file cannot be written.
    """
    draft = path.with_suffix(".html.part")
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise MooError(
            f"the page cannot be written ({error.strerror})", str(path), "name another place"
        ) from error
    return path


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _style() -> Markup:
    """The style sheet with the colours of both schemes; it is our own text, so it goes in unescaped."""
    light, dark = palette.variables(dark=False), palette.variables(dark=True)
    sheet = _read("page.css").replace("/*light*/", light).replace("/*dark*/", dark)
    return Markup(sheet + palette.rules())
