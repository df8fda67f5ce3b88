"""The sections of a comparison's page, a file each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_moo.evaluate.arms import Both
from megatron_moo.evaluate.compare_sections.conflict import conflict_section
from megatron_moo.evaluate.compare_sections.cosine import cosine_section
from megatron_moo.evaluate.compare_sections.curves import curves_section
from megatron_moo.evaluate.compare_sections.difference import difference_section
from megatron_moo.evaluate.compare_sections.evaluation import evaluation_section
from megatron_moo.evaluate.compare_sections.losses import losses_section
from megatron_moo.evaluate.compare_sections.recipes import recipes_section
from megatron_moo.evaluate.compare_sections.representations import representations_section
from megatron_moo.evaluate.compare_sections.stationarity import stationarity_section
from megatron_moo.evaluate.compare_sections.tokens import tokens_section
from megatron_moo.evaluate.compare_sections.weights import weights_section
from megatron_moo.report.sections.room import Section

SECTIONS: Sequence[Callable[[Both], Section]] = (
    difference_section,
    losses_section,
    curves_section,
    cosine_section,
    conflict_section,
    weights_section,
    stationarity_section,
    tokens_section,
    evaluation_section,
    representations_section,
    recipes_section,
)

__all__ = ["SECTIONS"]
