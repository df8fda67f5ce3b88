"""What all sections of a comparison's page share: units, names of means, numbers in cells."""

from __future__ import annotations

from megatron_moo.report import units
from megatron_moo.report.charts.forest import written
from megatron_moo.report.charts.table import Cell

BITS = "bits per byte"
MEANS = {"seen": "mean of seen", "unseen": "mean of unseen", "worst": "worst seen"}


def shown(value: float) -> str:
    """A difference in bits per byte."""
    return units.signed(value, 4)


def number(value: float, digits: int = 4) -> Cell:
    """A cell that is sorted by its value; a dash for none."""
    return Cell(written(value, digits, False), value)
