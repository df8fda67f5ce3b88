"""Loss per language, in training and on held-out text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from markupsafe import Markup

from megatron_moo.report import units
from megatron_moo.report.charts import scale
from megatron_moo.report.charts.frame import Figure
from megatron_moo.report.charts.lines import Series, line_chart
from megatron_moo.report.records import Array
from megatron_moo.report.sections.room import Room, Section
from megatron_moo.report.summary import NOTHING, Change

Unit = Literal["loss", "bits_per_byte"]
UNIT_NAMES: dict[Unit, str] = {"loss": "nats per token", "bits_per_byte": "bits per byte"}

HEADINGS = (
    "language",
    "",
    "tokens drawn",
    "train, start",
    "train, end",
    "held-out, start",
    "held-out, end",
    "change",
    "bits/byte, start",
    "bits/byte, end",
)


def loss_section(room: Room) -> Section:
    """Training loss, held-out loss of seen and unseen languages, and the numbers behind them."""
    lead = (
        "Training loss is that of the batch of each step, before the step's update. Held-out loss is over "
        "text that is never trained on; unseen languages are not trained on at all. Losses of different "
        "languages compare only as far as their texts do. Bits per byte do not depend on the tokenizer: they are "
        "comparable between models, not between scripts, whose letters take one to three bytes in UTF-8."
    )
    figures = (_train(room), *_held_out(room, "loss"), *_held_out(room, "bits_per_byte"), _table(room))
    return Section("loss", "Loss per language", lead, figures)


def _train(room: Room) -> Markup:
    x, grouped = room.line_bins(room.steps)
    series = []
    for tag in room.metrics.languages:
        values = room.per_step(lambda step, tag=tag: step.loss.get(tag, math.nan))  # type: ignore[misc]
        lost = tuple(
            float(step.step) for step in room.steps if tag in step.loss and not math.isfinite(step.loss[tag])
        )
        series.append(Series(tag, grouped.mean(values), room.colours[tag], not_finite=lost))
    spec = Figure(
        "train-loss",
        "Training loss",
        UNIT_NAMES["loss"],
        f"{grouped.note()} Point at a line or tap a name to single it out.",
        height=_height(len(series)),
        wide=True,
    )
    return line_chart(spec, x, series)


def _held_out(room: Room, unit: Unit) -> list[Markup]:
    valids = room.metrics.valids
    x = np.array([valid.step for valid in valids], dtype=np.float64)
    lines = {
        part: [Series(tag, _valid_values(room, unit, tag), room.colours[tag]) for tag in tags]
        for part, tags in (("seen", room.summary.seen), ("unseen", room.summary.unseen))
        if tags
    }
    shared = _shared_axis([line for part in lines.values() for line in part])
    height = _height(max((len(part) for part in lines.values()), default=0))
    charts = []
    for part, series in lines.items():
        spec = Figure(
            f"valid-{'loss' if unit == 'loss' else 'bits'}-{part}",
            f"Held-out, {part} languages",
            UNIT_NAMES[unit],
            "Both charts share one axis." if len(lines) > 1 else "",
            height=height,
        )
        charts.append(line_chart(spec, x, series, y=shared, points=len(valids) <= 30))
    return charts


def _valid_values(room: Room, unit: Unit, tag: str) -> Array:
    found = [getattr(valid, unit).get(tag, math.nan) for valid in room.metrics.valids]
    return np.array([value if math.isfinite(value) else math.nan for value in found], dtype=np.float64)


def _shared_axis(series: Sequence[Series]) -> scale.Scale | None:
    return scale.linear(np.concatenate([line.values for line in series])) if series else None


def _height(lines: int) -> int:
    """Room for a label of every line, up to a screen."""
    return min(420, max(260, 15 * lines + 40))


def _table(room: Room) -> Markup:
    summary = room.summary
    total = sum(summary.tokens.values())
    rows = [_row(room, tag, "seen", total) for tag in dict.fromkeys([*summary.train, *summary.seen])]
    rows += [_row(room, tag, "unseen", total) for tag in summary.unseen]
    means = [_mean_row(room, part, tags) for part, tags in _parts(room)]
    return Markup(
        '<figure class="fig wide" data-plot="loss-table"><figcaption><b>All numbers</b> '
        '<span class="unit">nats per token, bits per byte</span></figcaption><div class="scroll">'
        '<table class="sortable"><thead><tr>{}</tr></thead><tbody>{}</tbody><tfoot>{}</tfoot></table></div>'
        '<p class="note">Training: first value and mean of the last {} step{}. Held-out: first and last '
        "validation{}. Tap a heading to sort.</p></figure>"
    ).format(
        _headings(),
        Markup("").join(rows),
        Markup("").join(means),
        summary.window,
        "" if summary.window == 1 else "s",
        _valid_steps(room),
    )


def _parts(room: Room) -> Iterable[tuple[str, tuple[str, ...]]]:
    yield "seen", room.summary.seen or tuple(room.summary.train)
    if room.summary.unseen:
        yield "unseen", room.summary.unseen


def _valid_steps(room: Room) -> str:
    first, last = room.summary.first_valid, room.summary.last_valid
    if first is None:
        return " (none in this run)"
    return f" (step {first})" if first == last else f" (steps {first} and {last})"


def _headings() -> Markup:
    return Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in HEADINGS)


def _row(room: Room, tag: str, part: str, total: float) -> Markup:
    summary = room.summary
    drawn = summary.tokens.get(tag)
    share = "" if drawn is None or part == "unseen" else units.count(drawn)
    cells = (summary.train.get(tag, NOTHING), summary.held_out.get(tag, NOTHING))
    name = Markup('<i class="dot {}"></i>{}').format(room.colours.get(tag, "c0 d0"), tag)
    return _cells(name, part, share, drawn or 0.0, *cells, summary.bits_per_byte.get(tag, NOTHING), tag)


def _mean_row(room: Room, part: str, tags: tuple[str, ...]) -> Markup:
    summary = room.summary
    train, held_out = summary.mean(summary.train, tags), summary.mean(summary.held_out, tags)
    bits = summary.mean(summary.bits_per_byte, tags)
    return _cells(Markup.escape(summary.mean_of(tags)), part, "", 0.0, train, held_out, bits, "")


def _cells(
    name: Markup, part: str, drawn: str, tokens: float, train: Change, held: Change, bits: Change, tag: str
) -> Markup:
    numbers = [(units.loss(value), value) for value in (train.start, train.end, held.start, held.end)]
    numbers.append((units.signed(held.by), held.by))
    numbers += [(units.loss(value), value) for value in (bits.start, bits.end)]
    cells = Markup("").join(
        Markup('<td data-v="{}">{}</td>').format(value if math.isfinite(value) else "", text)
        for text, value in numbers
    )
    return Markup('<tr data-n="{}"><th scope="row">{}</th><td>{}</td><td data-v="{}">{}</td>{}</tr>').format(
        tag, name, part, tokens, drawn, cells
    )
