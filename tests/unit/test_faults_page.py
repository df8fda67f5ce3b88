"""docs/faults.md is what the recorded tests of faults give, and no fault is missing in it."""

from __future__ import annotations

from tests.faults import page


def test_the_page_is_up_to_date() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.markdown(page.read(page.RESULTS))


def test_every_fault_was_tried() -> None:
    assert {line["fault"] for line in page.read(page.RESULTS)} == set(page.TITLES)


def test_every_test_of_faults_is_run_for_the_page() -> None:
    named = {page.ROOT / path for path in page.TESTS}
    recording = {
        path
        for path in (page.ROOT / "tests").rglob("test_*.py")
        if "import record\n" in path.read_text(encoding="utf-8")
    }
    assert recording <= named
