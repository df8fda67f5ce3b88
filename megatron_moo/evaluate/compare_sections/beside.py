"""Whether what ``eval`` and ``analyze`` left beside the runs compares: the same step, text and settings."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from megatron_moo.evaluate.arms import Arm
from megatron_moo.evaluate.compare import Run
from megatron_moo.report.beside import Beside, mapping, read_beside
from megatron_moo.report.charts import frame
from megatron_moo.report.charts.frame import Figure

Told = Mapping[str, Any]
Reader = Callable[[Told], object]  # None: not told


def of_run(run: Run) -> Beside:
    """What other commands wrote beside a run."""
    return read_beside(run.folder)


def nothing_beside(spec: Figure, arms: Sequence[Arm], command: str, done: str) -> Markup:
    """In place of what no run has numbers for: the ``command`` that makes them, ``{}`` for a run's name."""
    command = command.format(arms[0].runs[0].name)
    return frame.missing(
        spec, f"None of the runs was {done}: “megatron-moo {command}” and so on, then compare."
    )


def key(name: str) -> Reader:
    """A field of the file itself."""
    return lambda told: told.get(name)


def per_language(name: str) -> Reader:
    """A field of every language, where any language has it."""

    def read(told: Told) -> object:
        languages = mapping(told.get("languages"))
        found = {tag: mapping(item).get(name) for tag, item in languages.items()}
        return found if any(value is not None for value in found.values()) else None

    return read


def differing(found: Sequence[Sequence[Told]], readers: Mapping[str, Reader]) -> list[str]:
    """Which of ``readers``, by their words, do not read the same from every file that tells them."""
    differ = []
    for words, read in readers.items():
        values = [read(told) for runs in found for told in runs if told]
        if len({json.dumps(value, sort_keys=True, default=str) for value in values if value is not None}) > 1:
            differ.append(words)
    return differ


def silent(arms: Sequence[Arm], found: Sequence[Sequence[Told]], read: Reader) -> list[str]:
    """Runs whose file does not tell what others' files tell."""
    told = [
        (run.name, read(one))
        for arm, runs in zip(arms, found, strict=True)
        for run, one in zip(arm.runs, runs, strict=True)
        if one
    ]
    if all(value is None for _, value in told):
        return []
    return [name for name, value in told if value is None]


def without(arms: Sequence[Arm], found: Sequence[Sequence[Told]]) -> list[str]:
    """Runs that have no such file."""
    return [
        run.name
        for arm, runs in zip(arms, found, strict=True)
        for run, told in zip(arm.runs, runs, strict=True)
        if not told
    ]


def verdict(
    arms: Sequence[Arm], found: Sequence[Sequence[Told]], readers: Mapping[str, Reader], what: str
) -> str:
    """Words for what does not compare; empty when everything that is told is equal.

    Args:
        arms: the sides.
        found: per side and run, its file (empty without one).
        readers: by their words, what must be equal; ``text`` among them may be missing from older files.
        what: past participle of the command, "evaluated".
    """
    words = []
    differ = differing(found, readers)
    if differ:
        words.append(f"DO NOT COMPARE: the runs were {what} with different {_list(differ)}.")
    unknown = silent(arms, found, key("text"))
    if unknown:
        words.append(f"On which text is not told (older files), so it may differ: {', '.join(unknown)}.")
    return " ".join(words)


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
