"""Small pieces of Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from megatron_moo.experiment.statistics import Contrast


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a sentence where there is no row."""
    if not body:
        return "No finished cells."
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def paragraph(text: str) -> str:
    """Filled to the width of our pages; nothing is broken inside a word."""
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def number(mean: float, half: float) -> str:
    """``2.217 ± 0.010``; without the half-width where one value has none."""
    return f"{mean:.4f}" if math.isnan(half) else f"{mean:.4f} ± {half:.4f}"


def contrast_text(found: Contrast | None) -> str:
    """``-0.0123 [-0.0200, -0.0050]``; nothing for no contrast."""
    if found is None:
        return ""
    if math.isinf(found.low):
        return f"{found.mean:+.4f} [too few seeds]"
    return f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"


def p_text(p: float) -> str:
    """Three decimals, four below 0.01."""
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"
