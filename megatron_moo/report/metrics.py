"""Reading ``runs/<name>/metrics.jsonl``, finished or still being written."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_moo.errors import MooError
from megatron_moo.report.records import EventRecord, Record, StepRecord, ValidRecord, numbers, parse_line

METRICS_FILE = "metrics.jsonl"
_LAYER = re.compile(r"layers\.(\d+)")


@dataclass
class RunMetrics:
    """Everything a run measured, one record a step, in the order of steps."""

    steps: list[StepRecord] = field(default_factory=list)
    valids: list[ValidRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    unreadable_lines: int = 0

    @property
    def languages(self) -> tuple[str, ...]:
        """The languages trained on: in the order of validation, then of objectives, then of appearance."""
        found = _union(step.loss for step in self.steps)
        named = _union([*(valid.seen for valid in self.valids), self.objectives])
        return tuple(tag for tag in _union([named, found]) if tag in set(found))

    @property
    def objectives(self) -> tuple[str, ...]:
        """The objectives of the last step that names any."""
        return next((step.objectives for step in reversed(self.steps) if step.objectives), ())

    @property
    def blocks(self) -> tuple[str, ...]:
        """All blocks from the embedding up: layers by number, others in the order of their appearance."""
        return tuple(sorted(_union(step.moo.blocks for step in self.steps if step.moo), key=_depth))

    @property
    def train_iters(self) -> int | None:
        """How many steps were asked for, by the last ``start``."""
        for event in reversed(self.events):
            asked = event.fields.get("train_iters")
            if event.event == "start" and isinstance(asked, int):
                return asked
        return None

    @property
    def drawn(self) -> Mapping[str, Mapping[str, float]]:
        """The last word on asked against drawn: language to shares and counts; empty when nothing was told."""
        told = self._last("drawn")
        languages = told.fields.get("languages") if told else None
        if not isinstance(languages, Mapping):
            return {}
        return {str(tag): numbers(shares) for tag, shares in languages.items()}

    @property
    def presence(self) -> str:
        """How languages came: ``present``, ``law`` or ``mixed``; empty when nothing was told."""
        told = self._last("drawn")
        return str(told.fields.get("presence", "")) if told else ""

    @property
    def stopped(self) -> EventRecord | None:
        """The event of early stopping that ended the run, or None."""
        event = self._last("stopped")
        return event if event and self.steps and event.step == self.steps[-1].step else None

    def _last(self, name: str) -> EventRecord | None:
        return next((event for event in reversed(self.events) if event.event == name), None)

    @property
    def finished(self) -> bool:
        """True when the last event is the run's end."""
        return bool(self.events) and self.events[-1].event == "end"

    def add(self, record: Record) -> None:
        """Take the next record of the file.

        A step that was seen before means that the run was resumed from an earlier checkpoint: what followed
        that point belongs to a branch that was given up, so it is forgotten. The last line of a step wins.
        """
        if isinstance(record, EventRecord):
            if record.event in ("start", "resume"):  # what blocks became later is of the branch given up
                self.events = [e for e in self.events if e.event != "blocks" or e.step <= record.step]
            self.events.append(record)
        elif isinstance(record, ValidRecord):
            self.valids = [old for old in self.valids if old.step != record.step]
            self.valids.append(record)
        else:
            if self.steps and record.step <= self.steps[-1].step:
                self.steps = [old for old in self.steps if old.step < record.step]
                self.valids = [old for old in self.valids if old.step < record.step]
            self.steps.append(record)


def stopped_line(event: EventRecord) -> str:
    """Why early stopping ended a run, in words."""
    watch, patience, best = (event.fields.get(name) for name in ("watch", "patience", "best"))
    what = {"macro": "the mean of all languages", "worst": "the worst language"}.get(str(watch), str(watch))
    return (
        f"stopped early at step {event.step}: {what} did not improve on {best:.4f} bits per byte in {patience} "
        "validations"
    )


def _depth(block: str) -> tuple[int, int]:
    if block.startswith("embedding"):
        return 0, 0
    layer = _LAYER.search(block)
    return (1, int(layer.group(1))) if layer else (2, 0)


def _union(groups: Iterable[Iterable[str]]) -> tuple[str, ...]:
    names: dict[str, None] = {}
    for group in groups:
        names.update(dict.fromkeys(group))
    return tuple(names)


def metrics_path(run_dir: Path) -> Path:
    """The metrics file of a run folder.

    Raises:
        MooError: the folder or the file is missing.
    """
    if not run_dir.is_dir():
        raise MooError(
            "no such run folder", where=str(run_dir), todo="give a folder that `megatron-moo train` wrote"
        )
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise MooError(f"the run folder has no {METRICS_FILE}", where=str(run_dir), todo="train first")
    return path


def read_metrics(run_dir: Path) -> RunMetrics:
    """All records of ``run_dir/metrics.jsonl``.

    A half-written last line is passed over in silence (the run may be writing it now); other lines that hold
    no record are counted in ``unreadable_lines``.

    Raises:
        MooError: the folder or the file is missing.
    """
    metrics = RunMetrics()
    with metrics_path(run_dir).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            record = parse_line(line)
            if record is not None:
                metrics.add(record)
            elif line.strip() and line.endswith("\n"):
                metrics.unreadable_lines += 1
    return metrics


def follow(
    path: Path,
    *,
    offset: int = 0,
    poll_s: float = 0.2,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Yield the records of a metrics file as they are written.

    Args:
        path: the file; it need not exist yet.
        offset: bytes to pass over first: the size before a resume, so that only new records are shown.
        poll_s: seconds between two looks.
        stop: asked when nothing is left to read; true ends the generator after a last look.

    Ends after an ``end`` event or when ``stop()`` is true. Only whole lines are parsed.
    """
    pending = b""
    last_look = False
    while True:
        chunk, offset, restarted = _read_from(path, offset)
        pending = (b"" if restarted else pending) + chunk
        *lines, pending = pending.split(b"\n")
        for line in lines:
            record = parse_line(line.decode("utf-8", errors="replace"))
            if record is None:
                continue
            yield record
            if isinstance(record, EventRecord) and record.event == "end":
                return
        if last_look:
            return
        if stop():
            last_look = True
        elif not chunk:
            time.sleep(poll_s)


def _read_from(path: Path, offset: int) -> tuple[bytes, int, bool]:
    """New bytes, the new offset, and whether the file was replaced by a shorter one."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return b"", offset, False
    restarted = size < offset
    offset = 0 if restarted else offset
    with path.open("rb") as file:
        file.seek(offset)
        chunk = file.read()
    return chunk, offset + len(chunk), restarted
