"""The live view: plain lines when piped, one line on a terminal, honest about what is not finite."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from megatron_moo.report.live import LiveView, cost_line, step_numbers, valid_line
from megatron_moo.report.records import EventRecord, StepRecord, ValidRecord, parse_record
from tests.unit.report.fake_run import FakeRun


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def shown(every_steps: int | None = None, terminal: bool = False, seconds: float = 3.0) -> str:
    out, clock = io.StringIO(), Clock()
    console = Console(file=out, width=120, force_terminal=terminal)
    with LiveView(console, 60, every_steps=every_steps, clock=clock) as view:
        for raw in FakeRun().records():
            record = parse_record(raw)
            assert record is not None
            view.update(record)
            clock.now += seconds if isinstance(record, StepRecord) else 0.0
    return out.getvalue()


def steps_in(text: str) -> list[int]:
    return [int(line.split()[1].split("/")[0]) for line in text.splitlines() if line.startswith("step ")]


def test_plain_lines_every_n_steps() -> None:
    text = shown(every_steps=20)
    assert steps_in(text) == [1, 20, 40, 60]
    assert "\x1b" not in text


def test_plain_lines_about_every_ten_seconds() -> None:
    assert steps_in(shown(seconds=3.0)) == [1, 5, 9, 13, 17, 21, 25, 29, 33, 37, 41, 45, 49, 53, 57, 60]
    assert len(steps_in(shown(seconds=30.0))) == 60


def test_plain_line_carries_the_numbers() -> None:
    line = shown(every_steps=60).splitlines()[0]
    raw = FakeRun().records()[1]
    worst = max(raw["loss"], key=raw["loss"].__getitem__)
    assert line.startswith("step 1/60  ")
    assert f"loss {sum(raw['loss'].values()) / 14:.3f}" in line
    assert f"worst {worst} {raw['loss'][worst]:.3f}" in line
    assert f"{raw['tokens_per_s']:,.0f} tokens/s" in line
    assert f"conflict {100 * raw['moo']['conflict_rate']:.0f} %" in line


def test_validation_is_always_shown() -> None:
    text = shown(every_steps=60)
    assert [line.split()[3] for line in text.splitlines() if line.startswith("held-out")] == [
        "1:",
        "10:",
        "20:",
        "30:",
        "40:",
        "50:",
        "60:",
    ]


def test_validation_tells_mean_and_worst_in_bits_per_byte() -> None:
    record = parse_record(
        {"event": "valid", "step": 4, "loss": {"a": 1.0, "b": 3.0, "u": 9.0},
         "bits_per_byte": {"a": 2.0, "b": 1.0, "u": 9.0}, "seen": ["a", "b"], "unseen": ["u"]}
    )  # fmt: skip
    assert isinstance(record, ValidRecord)
    assert valid_line(record) == (
        "held-out at step 4: seen 2.000 unseen 9.000 nats per token (bits per byte: mean 1.500, worst a 2.000)"
    )


def test_early_stopping_is_told() -> None:
    out = io.StringIO()
    fields = {"watch": "macro", "patience": 2, "best": 1.25}
    LiveView(Console(file=out, width=200), 9).update(EventRecord("stopped", 6, fields))
    assert out.getvalue() == (
        "stopped early at step 6: the mean of all languages did not improve on 1.2500 bits per byte in 2 validations\n"
    )


def test_terminal_shows_one_line_and_gives_the_cursor_back() -> None:
    text = shown(terminal=True)
    assert "60/60" in text
    assert text.rstrip().endswith("\x1b[?25h")


def test_eta_is_the_median_step_times_the_steps_left() -> None:
    view = LiveView(Console(file=io.StringIO()), 100)
    for number, seconds in enumerate([9.0, 2.0, 2.0, 2.0, 2.0], start=1):
        view.update(StepRecord(number, step_time_s=seconds))
    assert view.eta_s(5) == pytest.approx(190.0)


def test_eta_without_step_times_uses_the_clock() -> None:
    clock = Clock()
    view = LiveView(Console(file=io.StringIO()), 10, clock=clock)
    for number in (1, 2, 3):
        view.update(StepRecord(number))
        clock.now += 4.0
    assert view.eta_s(3) == pytest.approx(28.0)


def test_start_event_tells_the_number_of_steps() -> None:
    out = io.StringIO()
    view = LiveView(Console(file=out), 0)
    view.update(EventRecord("start", 0, {"train_iters": 7}))
    view.update(StepRecord(1, loss={"en": 2.0}))
    assert "step 1/7" in out.getvalue()


def test_losses_that_are_not_finite_are_named() -> None:
    text = step_numbers(StepRecord(1, loss={"en": 2.0, "sw": float("nan"), "fr": float("inf")}))
    assert text == "loss 2.000  not finite: sw, fr"


def test_markup_in_a_language_is_text() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=200, force_terminal=True), 2) as view:
        view.update(StepRecord(1, loss={"[red]x": 2.0, "b": 1.0}))
    assert "[red]x" in out.getvalue()


def test_the_cost_of_slots_is_printed_at_the_start() -> None:
    start = parse_record({"event": "start", "step": 0, "passes": 20, "kept_bytes": 14_400_000})
    assert isinstance(start, EventRecord)
    assert cost_line(start) == "20 passes a step, 14.4 MB of rows kept between them (first rank)"
    start = parse_record({"event": "start", "step": 0, "passes": 1, "kept_bytes": 0})
    assert isinstance(start, EventRecord)
    assert cost_line(start) == "1 pass a step, no rows kept between them (first rank)"


def test_the_cost_is_printed_at_a_resume_too() -> None:
    out = io.StringIO()
    with LiveView(Console(file=out, width=200), 9) as view:
        view.update(EventRecord("resume", 4, {"train_iters": 9, "passes": 2, "kept_bytes": 4_000_000}))
    assert "2 passes a step, 4" in out.getvalue()
