"""What is compared. Fixed in this file before the reported run: rows, grid, seeds, and the one primary contrast."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_moo.data.manifest import SamplingSpec


@dataclass(frozen=True)
class Row:
    """One way to train.

    Attributes:
        name: short and stable, the key in cells.jsonl.
        label: for the table.
        batches: ``lanes`` (every language in every step), ``mixed`` (samples drawn by ``sampling``) or ``placebo``
            (the samples of ``lanes`` dealt anew at random to as many pseudo-languages at every step).
        method, options, block, every, metric: the flags of the same names.
        baseline: whether the best tuned baseline may be this one.
        weights: whether the tuned fixed weights are its option.
        contender: whether the other tuning seeds look at the better two candidates.
    """

    name: str
    label: str
    batches: str = "lanes"
    sampling: SamplingSpec = field(default_factory=SamplingSpec)
    method: str = "mean"
    options: dict[str, Any] = field(default_factory=dict)
    block: str = "layer"
    every: int = 1
    metric: str = "euclidean"
    baseline: bool = False
    weights: bool = False

    @property
    def contender(self) -> bool:
        return self.name in CONTENDERS


def _moo(method: str, block: str, **kw: Any) -> Row:
    return Row(f"{method}-{block}", f"{method}, block {block}", method=method, block=block, **kw)


PRIMARY = "cagrad-layer"
AUTO_EVERY = 50
CONTENDERS = (PRIMARY, "mean", "mixed", "temperature", "unimax", "fixed", "placebo")

ROWS: tuple[Row, ...] = (
    Row("mean", "mean, one language per lane", baseline=True),
    Row("mixed", "mean, mixed batches, uniform", batches="mixed", baseline=True),
    Row(
        "temperature",
        "mean, mixed batches, temperature 3",
        batches="mixed",
        sampling=SamplingSpec("temperature", temperature=3.0),
        baseline=True,
    ),
    Row(
        "unimax",
        "mean, mixed batches, UniMax (1 epoch)",
        batches="mixed",
        sampling=SamplingSpec("unimax", epochs=1.0),
        baseline=True,
    ),
    Row("fixed", "fixed weights, tuned", method="fixed", baseline=True, weights=True),
    Row("random", "random weights, per step", method="random", block="model", baseline=True),
    _moo("cagrad", "layer"),
    Row("placebo", "PLACEBO: cagrad, block layer, pseudo-languages", batches="placebo", method="cagrad"),
    _moo("cagrad", "model"),
    _moo("cagrad", "bucket"),
    _moo("pcgrad", "layer"),
    _moo("pcgrad", "model"),
    _moo("mgda", "layer"),
    _moo("mgda", "model"),
    _moo("upgrad", "layer"),
    _moo("upgrad", "model"),
    Row("cagrad-every10", "cagrad, block layer, every 10", method="cagrad", every=10),
    Row("cagrad-every50", "cagrad, block layer, every 50", method="cagrad", every=50),
    Row(
        "cagrad-auto", f"cagrad, block auto, decided every {AUTO_EVERY} steps", method="cagrad", block="auto"
    ),
    Row("cagrad-adam", "cagrad, block layer, metric adam", method="cagrad", metric="adam"),
)
# Only in studies of other settings (studies.py).
OTHER_ROWS: tuple[Row, ...] = (
    Row("token", "plain Megatron: the sum over tokens, one language per lane", method="token", baseline=True),
    Row(
        "proportional",
        "mean, mixed batches, proportional",
        batches="mixed",
        sampling=SamplingSpec("proportional"),
        baseline=True,
    ),
    Row(
        "placebo-pcgrad",
        "PLACEBO: pcgrad, block layer, pseudo-languages",
        batches="placebo",
        method="pcgrad",
    ),
)
# After the contenders: one row after the other, tuned and with so many seeds, then the remaining seeds of all.
LATER = (
    "cagrad-model", "mgda-layer", "pcgrad-layer", "upgrad-layer", "cagrad-every10", "mixed", "cagrad-auto",
    "cagrad-adam", "mgda-model", "pcgrad-model", "cagrad-bucket", "cagrad-every50", "temperature", "unimax",
    "fixed", "random", "upgrad-model",
)  # fmt: skip
LATER_SEEDS = 6
BY_NAME = {row.name: row for row in (*ROWS, *OTHER_ROWS)}

# One grid for all rows. The first tuning seed tries all of it; for the contenders the others try the better two.
LR_GRID = (1.5e-3, 3e-3, 6e-3)
TUNING_SEEDS = (901, 902, 903, 904)
# A first attempt had two tuning seeds and reported seeds from 1 on. Its picks did not hold on the reported seeds (the
# rows that tuning put first came last), so after five seeds it was set aside for this protocol, with seeds of its own;
# the page tells both.
FIRST_SEED = 11
# Weights of the six languages are drawn around uniform; the first candidate is uniform itself.
WEIGHT_CANDIDATES = 6


def report_seeds(count: int) -> tuple[int, ...]:
    """Seeds of the reported cells; none of them tunes."""
    return tuple(range(FIRST_SEED, FIRST_SEED + count))


def weight_candidates(languages: int) -> list[tuple[float, ...]]:
    """Candidates for ``fixed``: uniform, then Dirichlet(4) draws of a fixed seed; each sums to 1."""
    import numpy as np

    draws = np.random.default_rng(2026).dirichlet([4.0] * languages, WEIGHT_CANDIDATES - 1)
    return [
        tuple([1.0 / languages] * languages),
        *(tuple(round(float(w), 4) for w in draw) for draw in draws),
    ]
