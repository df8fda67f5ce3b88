"""The corpora that ``data prepare`` knows: what they are, their licences, and who makes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_moo.data.prepare import chatterbot, installation_guide, libreoffice_help, udhr
from megatron_moo.errors import MooError


@dataclass(frozen=True)
class Item:
    """One corpus. ``make(out, tags)`` writes it and returns lines of report."""

    what: str
    licence: str
    make: Callable[[Path, Sequence[str] | None], list[str]]


def _udhr(out: Path, tags: Sequence[str] | None) -> list[str]:
    if tags is not None:
        raise MooError("udhr has one fixed choice of languages", "data prepare udhr", "leave --languages out")
    return udhr.prepare(out)


CATALOGUE: dict[str, Item] = {
    "udhr": Item(
        "Universal Declaration of Human Rights, 20 languages, 11 scripts (bundled)", udhr.LICENCE, _udhr
    ),
    "libreoffice-help": Item(
        "LibreOffice's help, 22 languages aligned by paragraph (Debian packages, 80 MB); a narrow domain",
        libreoffice_help.LICENCE,
        libreoffice_help.prepare,
    ),
    "installation-guide": Item(
        "Debian's installation guide, 19 languages (Debian package, 18 MB)",
        installation_guide.LICENCE,
        installation_guide.prepare,
    ),
    "chatterbot": Item(
        "ChatterBot's conversations, 28 languages, for fine-tuning (PyPI package, 0.3 MB)",
        chatterbot.LICENCE,
        chatterbot.prepare,
    ),
}


def prepare(name: str, out: Path, tags: Sequence[str] | None = None) -> list[str]:
    """Write corpus ``name`` under ``out``; lines of report, licence first.

    Raises:
        MooError: an unknown corpus or language, or a registry that does not answer.
    """
    if name not in CATALOGUE:
        raise MooError(f"unknown corpus {name!r}", "data prepare", f"choose one of {', '.join(CATALOGUE)}")
    item = CATALOGUE[name]
    out.mkdir(parents=True, exist_ok=True)
    return [f"{name}: {item.what}", f"licence: {item.licence}", *item.make(out, tags), f"written to {out}"]
