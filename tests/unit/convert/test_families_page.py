"""docs/families.md lists every family and every checkpoint of the zoo, and no difference above the bound."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_moo.models.families import families
from tests.distributed.convert_zoo import LAYOUTS, ZOO

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "families.md").read_text(encoding="utf-8")


def rows() -> list[list[str]]:
    """Cells of the measured table."""
    table = PAGE[PAGE.index("| checkpoint |") :].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table if line.startswith("|")]


def test_every_family_and_its_architectures_are_listed() -> None:
    for family in families():
        line = next((line for line in PAGE.splitlines() if line.startswith(f"| `{family.name}` |")), "")
        assert family.about in line
        assert all(f"`{name}`" in line for name in family.architectures), family.name
    assert {tiny.family for tiny in ZOO} == {family.name for family in families()}


def test_every_checkpoint_is_measured_tied_and_untied_padded_and_whole() -> None:
    head, _, *measured = rows()
    assert set(head[4:]) == {layout.name for layout in LAYOUTS}
    assert len(measured) == 2 * len(ZOO)
    for tiny in ZOO:
        name = tiny.name.replace(" tied", "").replace(", padded", "")
        found = [row for row in measured if row[0] == name]
        assert {row[1] for row in found} == {"tied", "untied"}, name
        assert {row[2] for row in found} == {"padded", "whole"}, name
        for row in found:
            dashes = [column for column, cell in zip(head[4:], row[4:], strict=True) if cell == "–"]
            assert dashes == [layout.name for layout in sorted_like(head[4:]) if not layout.fits(tiny)], name


def test_no_difference_is_above_the_bound() -> None:
    cells = [cell for row in rows()[2:] for cell in row[4:] if cell != "–"]
    assert all(re.fullmatch(r"\d\.\de-\d\d", cell) for cell in cells)
    assert max(map(float, cells)) <= 1e-5


def sorted_like(names: list[str]) -> list:
    """The layouts in the page's order."""
    return sorted(LAYOUTS, key=lambda layout: names.index(layout.name))
