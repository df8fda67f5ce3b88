"""A run's page and a comparison's in a real browser: no console error, every plot seen, script and sizes right.

Skipped with a reason where there is no chromium (Debian: ``apt-get install chromium``).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from megatron_moo.evaluate.compare import compare, read_run
from megatron_moo.evaluate.compare_page import write_comparison
from megatron_moo.report.page import write_report
from tests.unit.evaluate.paired import write_pairs
from tests.unit.report.fake_beside import write_beside
from tests.unit.report.fake_run import FakeRun
from tests.unit.report.html import Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--no-first-run",
    "--enable-logging=stderr",
    "--v=0",
)
CONSOLE = re.compile(r":CONSOLE[:(].*")
PHONE = 400  # pixels

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on this machine to look at the page with"
)

# Looks at every figure, then uses the page as a reader would, and leaves what it saw in the document.
PROBE = """
<script>
addEventListener("load", function () {
  var seen = { plots: {}, tips: {} };
  function move(node, x, y) {
    var box = node.getBoundingClientRect();
    node.dispatchEvent(new PointerEvent("pointermove", { pointerType: "mouse",
      clientX: box.left + box.width * x, clientY: box.top + box.height * y, bubbles: true }));
  }
  var tip = document.querySelector(".tip");
  document.querySelectorAll(".fig").forEach(function (figure) {
    var box = figure.getBoundingClientRect(), drawn = 0;
    figure.querySelectorAll("path, tbody td, .bar i").forEach(function (part) {
      if (part.getBoundingClientRect().width > 0) drawn += 1;
    });
    seen.plots[figure.dataset.plot] = { width: box.width, height: box.height, drawn: drawn };
    var area = figure.querySelector(".area");
    if (!area) return;
    move(area, 0.999, 0.5);
    seen.tips[figure.dataset.plot] = tip.hidden ? "" : tip.innerText;
    area.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" }));
  });
  seen.wide = document.documentElement.scrollWidth;
  seen.view = document.documentElement.clientWidth;  // without the scroll bar
  seen.background = getComputedStyle(document.body).backgroundColor;
  var label = document.querySelector('[data-plot=train-loss] .dl');
  if (label) {
    label.click();
    seen.single = Array.from(document.querySelectorAll("[data-plot=train-loss] .ln.one")).map(function (l) {
      return l.dataset.n; });
    seen.clicked = label.dataset.n;
    label.click();
    seen.released = document.querySelectorAll(".one, .on-one").length;
  }
  var slider = document.querySelector(".slider input");
  if (slider) {
    slider.value = 1;
    slider.dispatchEvent(new Event("input"));
    seen.frame = document.querySelector(".slider output").textContent;
    seen.frames = document.querySelectorAll("[data-plot=cosine-matrix] .fr.on").length;
  }
  var table = document.querySelector("table.sortable");
  table.querySelectorAll("thead th")[6].click();
  seen.sorted = Array.from(table.querySelectorAll("tbody tr")).map(function (row) {
    return Number(row.cells[6].dataset.v || Infinity); });
  document.getElementById("theme").click();
  seen.flipped = getComputedStyle(document.body).backgroundColor;
  var out = document.createElement("script");
  out.type = "application/json";
  out.id = "seen";
  out.textContent = JSON.stringify(seen).replace(/</g, "\\\\u003c");
  document.body.append(out);
});
</script>
"""


def browse(page: Path, tmp_path: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console said."""
    assert BROWSER is not None
    command = [
        BROWSER,
        *FLAGS,
        f"--user-data-dir={tmp_path / 'profile'}",
        *flags,
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, CONSOLE.findall(done.stderr)


def look(page: Path, tmp_path: Path, *flags: str) -> tuple[dict[str, Any], list[str]]:
    """What the probe saw on a copy of the page, and the console."""
    probed = tmp_path / "probed.html"
    probed.write_text(
        page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>"), encoding="utf-8"
    )
    document, console = browse(probed, tmp_path, *flags)
    found = re.search(r'<script type="application/json" id="seen">(.*?)</script>', document, re.DOTALL)
    assert found, f"the page's scripts did not finish: {console}"
    return json.loads(found.group(1)), console


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = FakeRun().write(tmp_path_factory.mktemp("runs") / "fake")
    return write_report(write_beside(run, tags=("en", "fr", "de", "es"), layers=9))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = write_pairs(tmp_path_factory.mktemp("pairs"), ("mean", "cagrad", "pcgrad"), seeds=(1, 2))
    for run in runs:
        write_beside(run)
    return write_comparison(compare([read_run(run) for run in runs]))


def test_console_errors_are_seen(tmp_path: Path) -> None:
    """The control: what the other tests rule out does show up here."""
    bad = tmp_path / "bad.html"
    bad.write_text("<!DOCTYPE html><title>x</title><script>console.error('first'); nothing.there;</script>")
    _, console = browse(bad, tmp_path)
    assert len(console) == 2
    assert "first" in console[0]
    assert "nothing is not defined" in console[1]


def test_page_works_in_a_browser(page: Path, tmp_path: Path) -> None:
    check_wide(page, tmp_path)


def test_comparison_works_in_a_browser(comparison: Path, tmp_path: Path) -> None:
    seen = check_wide(comparison, tmp_path)
    rows = Page(comparison).data("forest-1")["forest"]
    tip = seen["tips"]["forest-1"]
    assert any(tip.startswith(row["n"]) and row["s"][0][1] in tip and row["s"][0][2] in tip for row in rows)
    assert seen["tips"]["conflict-time"].startswith("step 20")
    assert seen["sorted"] == sorted(seen["sorted"]) == [2] * 2 * len(rows)  # pairs


def check_wide(page: Path, tmp_path: Path) -> dict[str, Any]:
    """Every plot of a page is drawn on a wide screen, and the console stays silent."""
    seen, console = look(page, tmp_path, "--window-size=1200,900")
    assert console == []
    assert set(seen["plots"]) == set(Page(page).plots())
    for plot, size in seen["plots"].items():
        assert size["drawn"] > 0, f"nothing is drawn in {plot}"
        assert size["width"] > 300, plot
        assert size["height"] > 100, plot
    assert seen["wide"] == seen["view"]  # nothing makes the page scroll sideways
    return seen


def test_tooltips_give_the_numbers(page: Path, tmp_path: Path) -> None:
    seen, _ = look(page, tmp_path, "--window-size=1200,900")
    data = Page(page)
    for plot in ("train-loss", "phases-time", "lr", "stationarity-blocks"):
        assert seen["tips"][plot].startswith("step 60"), plot
    closest = [
        line for line in data.data("train-loss")["s"] if line["n"] in seen["tips"]["train-loss"].split()
    ]
    assert len(closest) == 12
    assert seen["tips"]["layer-probe"].startswith("layer 8")
    for line in closest:
        assert str(line["v"][-1]) in seen["tips"]["train-loss"]
    matrix = data.data("cosine-matrix")
    row = matrix["frames"][0]["v"][7]  # half way down 14 rows, at the right edge
    assert seen["tips"]["cosine-matrix"].startswith(f"{matrix['rows'][7]} · {matrix['rows'][-1]}")
    assert seen["tips"]["cosine-matrix"].endswith(str(row[-1]).replace("-", "−"))


def test_reader_can_single_out_slide_and_sort(page: Path, tmp_path: Path) -> None:
    seen, _ = look(page, tmp_path, "--window-size=1200,900")
    assert seen["single"] == [seen["clicked"]]
    assert seen["released"] == 0
    assert (seen["frame"], seen["frames"]) == ("step 1", 1)
    assert seen["sorted"] == sorted(seen["sorted"])
    assert len(seen["sorted"]) == 20


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_dark_when_the_reader_prefers_it(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    page = request.getfixturevalue(which)
    light, _ = look(page, tmp_path)
    dark, _ = look(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert light["background"] == dark["flipped"] == "rgb(251, 250, 248)"
    assert dark["background"] == light["flipped"] == "rgb(20, 22, 26)"


@pytest.mark.parametrize("which", ["page", "comparison"])
def test_phone(which: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """A narrow frame, since a desktop browser's own window does not get so narrow."""
    page = request.getfixturevalue(which)
    inner = page.read_text(encoding="utf-8").replace("</body>", PROBE + "</body>")
    told = inner.replace("document.body.append(out);", "parent.postMessage(out.textContent, '*');")
    (tmp_path / "inner.html").write_text(told, encoding="utf-8")
    report = (
        "addEventListener('message', function (event) { var out = document.createElement('script');"
        "out.type = 'application/json'; out.id = 'seen'; out.textContent = event.data;"
        "document.body.append(out); });"
    )
    outer = tmp_path / "outer.html"
    frame = f"<iframe src='inner.html' style='width:{PHONE}px;height:800px;border:0'></iframe>"
    outer.write_text(f"<!DOCTYPE html><title>x</title><body><script>{report}</script>{frame}</body>")
    document, console = browse(outer, tmp_path, "--virtual-time-budget=5000")
    found = re.search(r'<script type="application/json" id="seen">(.*?)</script>', document, re.DOTALL)
    assert found, console
    seen = json.loads(found.group(1))
    assert console == []
    assert PHONE - 20 < seen["view"] <= PHONE
    assert seen["wide"] == seen["view"]
    assert all(0 < size["width"] < PHONE and size["drawn"] > 0 for size in seen["plots"].values())


def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    bad = "<script>console.error('ran')</script>"
    image = '"><img src=x onerror="console.error(\'ran\')">'
    run = FakeRun(seen=(bad, image), unseen=("</script>" + bad,), blocks=(bad, image), steps=10)
    seen, console = look(write_report(run.write(tmp_path / "run")), tmp_path)
    assert console == []
    assert bad in seen["tips"]["train-loss"]


def test_one_step_and_missing_numbers(tmp_path: Path) -> None:
    run_dir = FakeRun(seen=("en", "fr"), unseen=(), blocks=("model",), steps=1).write(tmp_path / "one")
    _, console = look(write_report(run_dir), tmp_path)
    assert console == []
    (run_dir / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    _, console = look(write_report(run_dir), tmp_path)
    assert console == []
