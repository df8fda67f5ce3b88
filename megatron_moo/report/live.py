"""The live view of a run in the terminal: a progress line, or plain lines when the output is piped."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from megatron_moo.report import units
from megatron_moo.report.metrics import stopped_line
from megatron_moo.report.records import EventRecord, Record, StepRecord, ValidRecord
from megatron_moo.report.summary import mean, median
from megatron_moo.report.table import print_summary, summary_table

__all__ = ["LiveView", "print_summary", "summary_table"]

RECENT = 20  # steps that the remaining time is estimated from


def cost_line(start: EventRecord) -> str:
    """Passes of a step, and the memory of the rows that a rank keeps between them."""
    passes, kept = start.fields["passes"], start.fields["kept_bytes"]
    assert isinstance(passes, int) and isinstance(kept, int)
    rows = f"{units.count(kept)}B of rows kept between them" if kept else "no rows kept between them"
    return f"{passes} pass{'es' if passes != 1 else ''} a step, {rows} (first rank)"


class LiveView:
    """Shows the records of a run as they come.

    On a terminal one line is redrawn in place; when piped, a plain line is printed at the first and last
    step and about every ``every_s`` seconds (or every ``every_steps`` steps), so that a log stays readable.

    Args:
        console: where to write.
        train_iters: the step at which the run ends; 0 when unknown.
        every_s: seconds between two plain lines.
        every_steps: steps between two plain lines; takes the place of ``every_s``.
        clock: seconds; tests give their own.
    """

    def __init__(
        self,
        console: Console,
        train_iters: int,
        *,
        every_s: float = 10.0,
        every_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console, self._train_iters = console, train_iters
        self._every_s, self._every_steps, self._clock = every_s, every_steps, clock
        self._printed_at = -math.inf
        self._step_times: deque[float] = deque(maxlen=RECENT)
        self._seen_at: float | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> LiveView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was; call it before anything else is printed."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def update(self, record: Record) -> None:
        """Show the next record."""
        if isinstance(record, StepRecord):
            self._time(record)
            self._show_step(record)
        elif isinstance(record, ValidRecord):
            self._print(valid_line(record))
        elif isinstance(record, EventRecord) and record.event == "stopped":
            self._print(stopped_line(record))
        elif isinstance(record, EventRecord) and record.event in ("start", "resume"):
            iters = record.fields.get("train_iters")
            self._train_iters = iters if isinstance(iters, int) else self._train_iters
            if "passes" in record.fields:
                self._print(cost_line(record))

    def _time(self, record: StepRecord) -> None:
        now = self._clock()
        if math.isfinite(record.step_time_s):
            self._step_times.append(record.step_time_s)
        elif self._seen_at is not None:
            self._step_times.append(now - self._seen_at)
        self._seen_at = now

    def eta_s(self, step: int) -> float:
        """Seconds left by the median of the last steps; NaN while unknown."""
        left = self._train_iters - step
        return left * median(self._step_times) if left >= 0 and self._step_times else math.nan

    def _show_step(self, record: StepRecord) -> None:
        numbers = step_numbers(record)
        eta = units.clock(self.eta_s(record.step))
        if self._console.is_terminal:
            progress, task = self._started()
            progress.update(task, completed=record.step, numbers=escape(numbers), eta=eta)
        elif self._is_due(record.step):
            total = f"/{self._train_iters}" if self._train_iters else ""
            self._print(f"step {record.step}{total}  {numbers}  ETA {eta}")

    def _started(self) -> tuple[Progress, TaskID]:
        if self._progress is None or self._task is None:
            self._progress = Progress(
                MofNCompleteColumn(),
                BarColumn(bar_width=16),
                TextColumn("ETA {task.fields[eta]}"),
                TextColumn("{task.fields[numbers]}", markup=True),
                console=self._console,
                refresh_per_second=4,
            )
            total = self._train_iters or None
            self._task = self._progress.add_task("train", total=total, numbers="", eta="-:--")
            self._progress.start()
        return self._progress, self._task

    def _is_due(self, step: int) -> bool:
        now = self._clock()
        if self._every_steps is not None:
            due = step % self._every_steps == 0 or step == self._train_iters
        else:
            due = now - self._printed_at >= self._every_s or step == self._train_iters
        if due or self._printed_at == -math.inf:
            self._printed_at = now
            return True
        return False

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def step_numbers(record: StepRecord) -> str:
    """Mean and worst loss, tokens/s and conflict rate of one step, what was measured of them."""
    parts = []
    finite = {tag: value for tag, value in record.loss.items() if math.isfinite(value)}
    if finite:
        worst = max(finite, key=lambda tag: finite[tag])
        parts.append(f"loss {mean(finite.values()):.3f}")
        if len(finite) > 1:
            parts.append(f"worst {worst} {finite[worst]:.3f}")
    lost = [tag for tag, value in record.loss.items() if not math.isfinite(value)]
    if lost:
        parts.append(f"not finite: {', '.join(lost)}")
    if math.isfinite(record.tokens_per_s):
        parts.append(f"{units.count(record.tokens_per_s)} tokens/s")
    if record.moo and math.isfinite(record.moo.conflict_rate):
        parts.append(f"conflict {units.percent(record.moo.conflict_rate)}")
    return "  ".join(parts)


def valid_line(record: ValidRecord) -> str:
    """One line about a validation pass."""
    parts = [f"held-out at step {record.step}:"]
    for name, tags in (("seen", record.seen), ("unseen", record.unseen)):
        known = [record.loss[tag] for tag in tags if tag in record.loss]
        if known:
            parts.append(f"{name} {units.loss(mean(known))}")
    parts.append("nats per token")
    bits = {tag: record.bits_per_byte[tag] for tag in record.seen if tag in record.bits_per_byte}
    if bits:
        worst = max(bits, key=lambda tag: math.inf if math.isnan(bits[tag]) else bits[tag])
        parts.append(
            f"(bits per byte: mean {units.loss(mean(bits.values()))}, worst {worst} {units.loss(bits[worst])})"
        )
    return " ".join(parts)
