"""The page of a comparison, from the same base, charts and colours as a run's report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import yaml

from megatron_moo.evaluate.arms import Arm, Both, arms_of
from megatron_moo.evaluate.compare import Comparison, Difference, Run
from megatron_moo.evaluate.compare_sections import SECTIONS
from megatron_moo.evaluate.compare_sections.words import shown
from megatron_moo.report import units
from megatron_moo.report.html import Tile, fill, put

MOST_NAMED = 3  # arms that get headline numbers of their own


def page_path(found: Comparison) -> Path:
    """Where a comparison's page goes when nobody says where: beside the reference's first run, named by the runs."""
    first, *others = (group[0] for group in found.groups.values())
    more = f"-and-{len(others) - 1}-more" if len(others) > 1 else ""
    return first.folder.parent / f"compare-{first.name}-{others[0].name}{more}.html"


def write_comparison(found: Comparison, path: Path | None = None) -> Path:
    """Write the page of a comparison and return its path (:func:`page_path` by default).

    Raises:
        MooError: the page cannot be written.
    """
    return put(path or page_path(found), render(found))


def render(found: Comparison) -> str:
    """The page of a comparison as text."""
    both = Both(found, arms_of(found))
    reference, *others = both.arms
    return fill(
        "comparison.html.j2",
        kind="comparison",
        name=f"{others[0].short} against {reference.short}"
        if len(others) == 1
        else f"{len(others)} recipes against {reference.short}",
        state=f"{sum(len(arm.runs) for arm in both.arms)} runs, paired by seed",
        facts=list(_facts(both)),
        tiles=list(_tiles(both)),
        warnings=found.notes,
        sections=[section(both) for section in SECTIONS],
        same=yaml.safe_dump(_same([run for arm in both.arms for run in arm.runs]), sort_keys=True).strip(),
    )


def _facts(both: Both) -> Iterator[str]:
    run = both.arms[0].runs[0]
    yield f"{len(run.seen)} languages" + (f", {len(run.unseen)} unseen" if run.unseen else "")
    tokens = {one.tokens for arm in both.arms for one in arm.runs}
    low, high = units.count(min(tokens)), units.count(max(tokens))
    yield f"{low} tokens a run" if low == high else f"{low} to {high} tokens a run"
    yield f"last validation at step {run.step:,}"


def _tiles(both: Both) -> Iterator[Tile]:
    others = both.arms[1:]
    names = {"seen": "Seen", "unseen": "Unseen", "worst": "Worst seen"}
    if len(others) > MOST_NAMED:
        names = {"seen": "Seen"}
    for arm in others:
        rows = both.found.differences[arm.name]
        for key, title in names.items():
            if key in rows:
                yield _tile(title, arm, both.arms[0], rows[key], len(others) == 1)


def _tile(title: str, arm: Arm, reference: Arm, item: Difference, alone: bool) -> Tile:
    interval = (
        "one pair" if item.pairs < 2 else f"95 % {shown(item.low)} to {shown(item.high)}, {item.pairs} pairs"
    )
    detail = f"bits per byte, {arm.short} minus {reference.short}; {interval}"
    return Tile(
        f"{title}, difference", shown(item.mean) if math.isfinite(item.mean) else units.ABSENT, detail
    )


def _same(runs: list[Run]) -> dict[str, object]:
    """Flags that all runs have alike."""
    first = runs[0].flags
    return {key: value for key, value in first.items() if all(run.flags.get(key) == value for run in runs)}
