"""The lines of ``metrics.jsonl`` as typed records.

A line is a training step, a validation or another event (``start``, ``end``). Every field but the step may
be absent: what a run did not measure is ``None``, an empty mapping or NaN here, never a made-up number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
MODEL = "model"  # the key under which the whole model's value stands beside the blocks'


@dataclass(frozen=True)
class MooRecord:
    """What multi-objective optimisation did in one step.

    K objectives and B blocks, in the order of ``StepRecord.objectives`` and ``blocks``; unmeasured entries
    are NaN.
    """

    method: str
    block: str  # how the parameters were cut: bucket, layer, module, param or model
    blocks: tuple[str, ...]
    conflict_rate: float
    cosine: Array  # [K, K], or [0, 0] when not measured
    cosine_same: float
    weights: Array  # [B, K]
    stationarity: Array  # [B]
    stationarity_model: float
    norm: Array  # [B], of the combined direction d_b
    conflict: Array  # [B], share of pairs with a negative cosine
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class StepRecord:
    """One training step; ``loss`` in nats per token, times in seconds."""

    step: int
    objectives: tuple[str, ...] = ()
    loss: Mapping[str, float] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, float] = field(default_factory=dict)
    grad_norm: float = math.nan
    lr: float = math.nan
    step_time_s: float = math.nan
    tokens_per_s: float = math.nan
    phase_s: Mapping[str, float] = field(default_factory=dict)
    moo: MooRecord | None = None


@dataclass(frozen=True)
class ValidRecord:
    """One pass over the held-out text; ``loss`` in nats per token."""

    step: int
    loss: Mapping[str, float]
    bits_per_byte: Mapping[str, float]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass(frozen=True)
class EventRecord:
    """``start``, ``end`` or any other event, with its fields as written."""

    event: str
    step: int
    fields: Mapping[str, Any]


Record = StepRecord | ValidRecord | EventRecord


def parse_line(line: str) -> Record | None:
    """The record of one line, or ``None`` when the line holds none.

    A crash can leave half a line to which the resumed run appends its first one: the whole record at the end
    of such a line is found.
    """
    for start in _record_starts(line):
        try:
            raw = json.loads(line[start:])
        except (ValueError, RecursionError):
            continue
        record = parse_record(raw)
        if record is not None:
            return record
    return None


def _record_starts(line: str) -> Iterable[int]:
    yield 0
    for opening in ('{"step":', '{"event":', '{"step" :', '{"event" :'):
        position = line.rfind(opening)
        if position > 0:
            yield position


def parse_record(raw: object) -> Record | None:
    """The record of one decoded JSON object, ``None`` when it is not one of ours."""
    if not isinstance(raw, Mapping):
        return None
    event = raw.get("event")
    step = _step(raw.get("step"))
    if event is None:
        return None if step is None else _step_record(step, raw)
    if event == "valid":
        return None if step is None else _valid_record(step, raw)
    return EventRecord(event=str(event), step=step or 0, fields=dict(raw))


def _step(value: object) -> int | None:
    number = _number(value)
    return None if math.isnan(number) or math.isinf(number) else int(number)


def _step_record(step: int, raw: Mapping[str, Any]) -> StepRecord:
    objectives = _names(raw.get("objectives"))
    moo = raw.get("moo")
    return StepRecord(
        step=step,
        objectives=objectives,
        loss=numbers(raw.get("loss")),
        tokens=numbers(raw.get("tokens")),
        samples=numbers(raw.get("samples")),
        grad_norm=_number(raw.get("grad_norm")),
        lr=_number(raw.get("lr")),
        step_time_s=_number(raw.get("step_time_s")),
        tokens_per_s=_number(raw.get("tokens_per_s")),
        phase_s=numbers(raw.get("phase_s")),
        moo=_moo_record(moo, objectives) if isinstance(moo, Mapping) else None,
    )


def _valid_record(step: int, raw: Mapping[str, Any]) -> ValidRecord:
    loss = numbers(raw.get("loss"))
    unseen = _names(raw.get("unseen"))
    seen = _names(raw.get("seen")) or tuple(tag for tag in loss if tag not in set(unseen))
    return ValidRecord(step, loss, numbers(raw.get("bits_per_byte")), seen, unseen)


def _moo_record(raw: Mapping[str, Any], objectives: tuple[str, ...]) -> MooRecord:
    weights = _mapping(raw.get("weights"))
    by_block = {name: numbers(raw.get(name)) for name in ("stationarity", "norm", "conflict")}
    blocks = _block_names(weights, by_block.values())
    return MooRecord(
        method=str(raw.get("method", "")),
        block=str(raw.get("block", "")),
        blocks=blocks,
        conflict_rate=_number(raw.get("conflict_rate")),
        cosine=_matrix(raw.get("cosine"), len(objectives)),
        cosine_same=_number(raw.get("cosine_same")),
        weights=_weights(weights, blocks, objectives),
        stationarity=_column(by_block["stationarity"], blocks),
        stationarity_model=by_block["stationarity"].get(MODEL, math.nan),
        norm=_column(by_block["norm"], blocks),
        conflict=_column(by_block["conflict"], blocks),
        dropped=_names(raw.get("dropped")),
    )


def _block_names(weights: Mapping[str, Any], columns: Iterable[Mapping[str, float]]) -> tuple[str, ...]:
    """Blocks in order of appearance; ``model`` counts as a block only when it has weights of its own."""
    names = dict.fromkeys(weights)
    for column in columns:
        names.update(dict.fromkeys(name for name in column if name != MODEL))
    return _intern(tuple(names))


@lru_cache(maxsize=256)
def _intern(names: tuple[str, ...]) -> tuple[str, ...]:
    """One tuple for the thousands of steps that share it."""
    return names


def _weights(raw: Mapping[str, Any], blocks: tuple[str, ...], objectives: tuple[str, ...]) -> Array:
    rows = [_mapping(raw.get(block)) for block in blocks]
    table = [[row.get(objective) for objective in objectives] for row in rows]
    shape = (len(blocks), len(objectives))
    try:
        return np.array(table, dtype=np.float64).reshape(shape)  # null and absent become NaN
    except (TypeError, ValueError):
        return np.full(shape, math.nan)


def _column(values: Mapping[str, float], blocks: tuple[str, ...]) -> Array:
    return np.array([values.get(block, math.nan) for block in blocks], dtype=np.float64)


def _matrix(raw: object, size: int) -> Array:
    """A [K, K] matrix; anything of another shape counts as not measured."""
    empty = np.zeros((0, 0))
    if not isinstance(raw, list) or not raw or len(raw) != size:
        return empty
    try:
        matrix = np.array(raw, dtype=np.float64)  # null becomes NaN
    except (TypeError, ValueError):
        return empty
    return matrix if matrix.shape == (size, size) else empty


def _number(value: object) -> float:
    """A float; ``null``, a word or nothing at all is NaN."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def numbers(value: object) -> dict[str, float]:
    """A mapping of names to floats; what is no number is NaN."""
    return {str(key): _number(number) for key, number in _mapping(value).items()}


def _names(value: object) -> tuple[str, ...]:
    return _intern(tuple(str(name) for name in value)) if isinstance(value, list | tuple) else ()
