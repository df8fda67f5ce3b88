"""Documents that a command writes are what it writes now."""

from __future__ import annotations

from pathlib import Path

from megatron_moo.training import support
from megatron_moo.training.arguments import FLAG_NAMES

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_support_table_is_up_to_date() -> None:
    assert (DOCS / "support.md").read_text(encoding="utf-8") == support.markdown()


def test_every_flag_is_documented() -> None:
    text = (DOCS / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in FLAG_NAMES if f"| `{name}` |" not in text] == []


def test_every_layout_is_in_the_table() -> None:
    from tests.distributed.matrix import BUCKETS, CASES

    text = (DOCS / "layouts.md").read_text(encoding="utf-8")
    assert [case.name for case in (*CASES, *BUCKETS) if f"| {case.name} |" not in text] == []


def test_traps_and_promises_are_those_of_the_tests() -> None:
    from tests.distributed.write_layouts import lists

    assert (DOCS / "layouts.md").read_text(encoding="utf-8").endswith(lists())
