"""Beside the comparison: a later placebo, and other settings with fewer rows, seeds and tuning cells."""

from __future__ import annotations

from dataclasses import dataclass, replace

from megatron_moo.experiment.rows import BY_NAME, TUNING_SEEDS, Row
from megatron_moo.experiment.setting import SEEN, Setting

SEEDS = 6
RARE = "ko"
SHARE = 0.02


@dataclass(frozen=True)
class Study:
    """A setting of its own with its rows.

    Attributes:
        name: of ``--study``.
        title, text: of its part of the page.
        tuning: seeds that choose learning rates.
        contrast: row and what it is read against; None: the primary row and the best tuned baseline.
    """

    name: str
    title: str
    text: str
    setting: Setting
    rows: tuple[Row, ...]
    seeds: int = SEEDS
    tuning: tuple[int, ...] = TUNING_SEEDS[:1]
    contrast: tuple[str, str] | None = None


def _rows(*names: str) -> tuple[Row, ...]:
    return tuple(BY_NAME[name] for name in names)


_EVERY = 400_000
_LARGER = replace(Setting(), layers=4, hidden=128, ffn=344)
STUDIES = {
    study.name: study
    for study in (
        Study(
            "placebo",
            "A placebo of the row that passed",
            "Planned after the main comparison was known, in its setting, on its seeds: `pcgrad-layer` passed Holm's "
            "correction there, so here is the same method over pseudo-languages, to which the samples of every step "
            "are dealt at random. If it gains as much, the gain is not about languages.",
            Setting(),
            _rows("mean", "pcgrad-layer", "placebo-pcgrad"),
            seeds=10,
            contrast=("placebo-pcgrad", "pcgrad-layer"),
        ),
        Study(
            "imbalance",
            "With one rare language",
            f"{RARE} has {100 * SHARE:g} % of the tokens, of the training text as of every row's batches: with one "
            "language per lane it is there with one sequence in four of ten steps, mixed batches draw it in "
            f"proportion (temperature and UniMax draw it more often). The other five have {_EVERY // 1000} kB each.",
            replace(
                Setting(),
                rare=(RARE, SHARE),
                measure_every=0,
                train_bytes={
                    tag: round(_EVERY * 5 * SHARE / (1 - SHARE)) if tag == RARE else _EVERY for tag in SEEN
                },
            ),
            _rows(
                "mean", "token", "proportional", "temperature", "unimax", "fixed", "cagrad-layer", "placebo",
                "cagrad-model", "mgda-layer",
            ),
        ),
        Study(
            "larger",
            "With a larger model",
            f"{_LARGER.layers} layers of width {_LARGER.hidden} ({_LARGER.parameters() / 1000:.0f} thousand "
            f"parameters, {_LARGER.parameters() / Setting().parameters():.1f} times as many), everything else as "
            "above.",
            _LARGER,
            _rows("mean", "mixed", "fixed", "cagrad-layer", "placebo", "cagrad-model"),
        ),
    )
}  # fmt: skip
