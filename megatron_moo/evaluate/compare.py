"""Runs compared over paired seeds, from what their validation measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from megatron_moo.errors import MooError
from megatron_moo.report.metrics import RunMetrics, read_metrics

# Flags that say nothing about how a model was trained.
_PLACES = (
    "seed", "run-dir", "save", "load", "tensorboard-dir", "corpus", "languages", "log-interval", "eval-interval",
    "save-interval", "exit-interval", "eval-iters", "eval-global-batch-size", "eval-micro-batch-size", "name", "nproc",
)  # fmt: skip
DRAWS = 10_000
FEW = 6  # pairs; with fewer a bootstrap interval says little


@dataclass(frozen=True)
class Run:
    """What a run says of itself.

    Attributes:
        flags: of its recipe, places apart.
        bits: bits per byte per language at the last validation.
        tokens: trained on, all languages together.
        data: what identifies its data: the fingerprint of the corpus that it read, several joined by ``+`` where a
            resume found other text; of runs that did not keep it the corpus as it lies now, or the manifest's path.
        versions: of the packages that it ran with, by name.
        data_kept: ``data`` is what the run read, not what lies in its place now.
    """

    name: str
    seed: int
    flags: Mapping[str, Any]
    bits: Mapping[str, float]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    step: int
    tokens: int
    data: str
    folder: Path = Path()
    versions: Mapping[str, str] = field(default_factory=dict)
    data_kept: bool = True

    @property
    def short_data(self) -> str:
        """``data``, short enough to be shown."""
        return "+".join(part[:12] for part in self.data.split("+"))


@dataclass(frozen=True)
class Difference:
    """Method minus reference over pairs: ``base`` is the reference's mean, below 0 the method is better.

    ``each`` holds the pairs' own differences in the order of their seeds.
    """

    base: float
    mean: float
    low: float
    high: float
    pairs: int
    each: tuple[float, ...] = ()


@dataclass
class Comparison:
    """Per group of runs: language, ``seen``, ``unseen``, ``worst`` to the difference from the reference group."""

    reference: str
    differences: dict[str, dict[str, Difference]]
    notes: list[str] = field(default_factory=list)
    groups: dict[str, list[Run]] = field(default_factory=dict)  # the reference first

    def as_json(self) -> dict[str, Any]:
        """Reference, runs of every group, differences and notes, for a file."""
        return {
            "reference": self.reference,
            "runs": {name: [run.name for run in group] for name, group in self.groups.items()},
            "differences": {
                name: {what: asdict(item) for what, item in rows.items()}
                for name, rows in self.differences.items()
            },
            "notes": self.notes,
        }


def read_run(folder: Path) -> Run:
    """Read recipe and metrics of a run folder.

    Raises:
        MooError: a run without recipe or validation.
    """
    metrics = read_metrics(folder)
    try:
        recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
        flags = dict(recipe["flags"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError):
        raise MooError(
            "has no readable recipe.yaml", str(folder), "give folders of megatron-moo train"
        ) from None
    if not metrics.valids or not metrics.steps:
        raise MooError("has no validation after training", str(folder), "train it to its end")
    last = metrics.valids[-1]
    tokens = sum(int(sum(step.tokens.values())) for step in metrics.steps)
    kept = {key: value for key, value in flags.items() if key not in _PLACES}
    data, data_kept = _data(flags, metrics)
    return Run(
        folder.name, int(flags.get("seed", 1234)), kept, dict(last.bits_per_byte), tuple(last.seen),
        tuple(last.unseen), last.step, tokens, data, folder, _versions(recipe), data_kept,
    )  # fmt: skip


def _versions(recipe: Mapping[str, Any]) -> dict[str, str]:
    told = recipe.get("versions")
    return {str(name): str(value) for name, value in told.items()} if isinstance(told, Mapping) else {}


def _data(flags: Mapping[str, Any], metrics: RunMetrics) -> tuple[str, bool]:
    """What identifies the data, and whether that is what the run itself read."""
    starts = [event for event in metrics.events if event.event in ("start", "resume")]
    begun = max((i for i, event in enumerate(starts) if event.event == "start"), default=0)
    told = dict.fromkeys(str(event.fields["corpus"]) for event in starts[begun:] if "corpus" in event.fields)
    if told:
        return "+".join(told), True
    from megatron_moo.data import open_corpus

    folder = Path(str(flags.get("corpus", "")))
    record = folder / "build.json"
    if not record.is_file():
        return str(flags.get("languages", "unknown")), False
    time = starts[begun].fields.get("time") if starts else None
    older = isinstance(time, int | float) and record.stat().st_mtime <= time  # not built again since
    return open_corpus(folder).fingerprint, older


def compare(
    runs: Sequence[Run], reference: str | None = None, unequal: bool = False, seed: int = 0
) -> Comparison:
    """Group runs that differ in nothing but the seed, and compare the groups over the seeds that they share.

    Args:
        reference: name of one run of the reference group; None: the first run's group.
        unequal: compare although tokens or data differ; the notes say so.
        seed: of the bootstrap.

    Raises:
        MooError: one group only, no common seed, one seed twice in a group, or unequal tokens or data.
    """
    groups: list[list[Run]] = []
    for run in runs:
        home = next((group for group in groups if group[0].flags == run.flags), None)
        if home is None:
            groups.append([run])
        elif any(other.seed == run.seed for other in home):
            raise MooError(f"seed {run.seed} comes twice with the same recipe", run.name, "leave one out")
        else:
            home.append(run)
    if len(groups) < 2:
        raise MooError("all runs have the same recipe", "compare", "give runs of two recipes or more")
    notes = _unequal(runs, unequal)
    base = (
        groups[0]
        if reference is None
        else next((g for g in groups if any(r.name == reference for r in g)), None)
    )
    if base is None:
        raise MooError(f"{reference!r} is none of the runs", "--reference")
    names = _names(groups)
    groups.sort(key=lambda group: group is not base)
    found = Comparison(
        names[id(base)], {}, [*notes, *_hidden(runs)], {names[id(group)]: group for group in groups}
    )
    for group in groups[1:]:
        found.differences[names[id(group)]] = _differences(group, base, seed)
        found.notes += _left_out(group, base, names[id(group)])
    fewest = min(next(iter(rows.values())).pairs for rows in found.differences.values() if rows)
    if fewest < FEW:
        found.notes.append(
            f"{fewest} pair{'s' * (fewest != 1)} by seed: intervals from so few are too narrow; look at the "
            "pairs themselves"
        )
    return found


def _hidden(runs: Sequence[Run]) -> list[str]:
    """What runs of equal tokens and data may still differ in."""
    notes = []
    forgot = [run.name for run in runs if not run.data_kept]
    if forgot:
        notes.append(
            "made before runs kept the fingerprint of their data, which may have changed since: "
            + ", ".join(forgot)
        )
    if len({tuple(sorted(run.versions.items())) for run in runs}) > 1:
        notes.append("the runs were made with different versions of their packages")
    if len({run.step for run in runs}) > 1:
        each = ", ".join(f"{run.name} {run.step}" for run in runs)
        notes.append(f"the last validations stand at different steps: {each}")
    return notes


def _left_out(group: Sequence[Run], base: Sequence[Run], name: str) -> list[str]:
    """Runs without a partner, and languages that not every run measured."""
    notes = []
    ours, theirs = ({run.seed for run in part} for part in (group, base))
    alone = [run.name for run in group if run.seed not in theirs]
    alone += [run.name for run in base if run.seed not in ours]
    if alone:
        notes.append(f"{name}: without a partner of the same seed and left out: {', '.join(alone)}")
    every = [run for run in (*group, *base) if run.seed in ours & theirs]
    tags = dict.fromkeys(tag for run in every for tag in (*run.seen, *run.unseen))
    lost = [tag for tag in tags if any(not math.isfinite(run.bits.get(tag, math.nan)) for run in every)]
    if lost:
        notes.append(f"{name}: not measured or not finite in every run, and left out: {', '.join(lost)}")
    return notes


def _unequal(runs: Sequence[Run], allowed: bool) -> list[str]:
    """Notes about unequal tokens within a seed (seeds draw other samples, so tokens differ between them) and data."""
    seeds: dict[int, set[int]] = {}
    for run in runs:
        seeds.setdefault(run.seed, set()).add(run.tokens)
    notes = []
    for what, unequal in (
        ("tokens", any(len(tokens) > 1 for tokens in seeds.values())),
        ("data", len({run.data for run in runs}) > 1),
    ):
        if unequal:
            each = ", ".join(
                f"{run.name} {run.tokens if what == 'tokens' else run.short_data}" for run in runs
            )
            if not allowed:
                raise MooError(
                    f"runs of unequal {what}: {each}", "compare", "--allow-unequal compares them and says so"
                )
            notes.append(f"the runs have UNEQUAL {what}: {each}")
    return notes


def _names(groups: Sequence[Sequence[Run]]) -> dict[int, str]:
    """What tells the groups apart: the flags in which they differ, or the first run's name."""
    keys = {key for group in groups for key in group[0].flags}
    differ = sorted(key for key in keys if len({repr(g[0].flags.get(key)) for g in groups}) > 1)
    found: dict[int, str] = {}
    for group in groups:
        parts = [f"{key} {_value(group[0].flags[key])}" for key in differ if key in group[0].flags]
        name = ", ".join(parts)
        name = name if name and len(name) <= 80 else group[0].name
        while name in found.values():  # folders of one name, or a flag that only the other has
            name += "'"
        found[id(group)] = name
    return found


def _value(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _differences(group: Sequence[Run], base: Sequence[Run], seed: int) -> dict[str, Difference]:
    pairs = [(run, other) for run in group for other in base if run.seed == other.seed]
    pairs.sort(key=lambda pair: pair[0].seed)
    if not pairs:
        raise MooError("no seed in common", f"{group[0].name}, {base[0].name}", "pair runs by --seed")
    first = pairs[0][1]
    wanted = [
        tag
        for tag in (*first.seen, *first.unseen)
        if all(math.isfinite(run.bits.get(tag, math.nan)) for pair in pairs for run in pair)
    ]
    if not wanted:
        raise MooError(
            "no language was measured by all runs",
            f"{group[0].name}, {base[0].name}",
            "validate the same languages",
        )
    rows = {tag: [(a.bits[tag], b.bits[tag]) for a, b in pairs] for tag in wanted}
    for what, tags in (("seen", first.seen), ("unseen", first.unseen)):
        tags = tuple(tag for tag in tags if tag in rows)
        if tags:
            rows[what] = [(_mean(a, tags), _mean(b, tags)) for a, b in pairs]
    seen = tuple(tag for tag in first.seen if tag in rows)
    if seen:
        rows["worst"] = [(max(a.bits[t] for t in seen), max(b.bits[t] for t in seen)) for a, b in pairs]
    return {what: _difference(values, seed) for what, values in rows.items()}


def _mean(run: Run, tags: Sequence[str]) -> float:
    return float(np.mean([run.bits[tag] for tag in tags]))


def _difference(values: Sequence[tuple[float, float]], seed: int) -> Difference:
    both = np.array(values)
    d = both[:, 0] - both[:, 1]
    means = d[np.random.default_rng(seed).integers(0, len(d), (DRAWS, len(d)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    each = tuple(float(one) for one in d)
    return Difference(float(both[:, 1].mean()), float(d.mean()), float(low), float(high), len(d), each)
