"""The sections of a run's page, each a few plots with the words that say what was measured."""

from __future__ import annotations

from collections.abc import Callable

from megatron_moo.report.sections.conflict import conflict_section
from megatron_moo.report.sections.cosine import cosine_section
from megatron_moo.report.sections.data import data_section
from megatron_moo.report.sections.evaluation import evaluation_section
from megatron_moo.report.sections.loss import loss_section
from megatron_moo.report.sections.representations import representations_section
from megatron_moo.report.sections.room import Room, Section
from megatron_moo.report.sections.stationarity import stationarity_section
from megatron_moo.report.sections.time import time_section
from megatron_moo.report.sections.weights import weights_section

SECTIONS: tuple[Callable[[Room], Section], ...] = (
    loss_section,
    cosine_section,
    conflict_section,
    weights_section,
    stationarity_section,
    data_section,
    evaluation_section,
    representations_section,
    time_section,
)

__all__ = ["SECTIONS", "Room", "Section"]
