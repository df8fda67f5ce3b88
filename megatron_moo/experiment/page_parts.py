"""Small pieces of Markdown."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from megatron_moo.experiment.planner import Planner
from megatron_moo.experiment.results import UNIFORM, Compared, Finished, diverged, family, least_holm, values
from megatron_moo.experiment.rows import Row
from megatron_moo.experiment.setting import UNSEEN
from megatron_moo.experiment.statistics import Contrast, mean_interval, smallest_p

LEVEL = 0.05


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
    """Three decimals, four below 0.01, powers of ten below 0.0001."""
    if p < 0.0001:
        return f"{p:.1e}"
    return f"{p:.4f}" if p < 0.01 else f"{p:.3f}"


def direction(found: Contrast | None) -> int:
    """-1: shown to be better at the 5 % level, 1: worse, 0: not told apart."""
    if found is None or found.p >= LEVEL:
        return 0
    return -1 if found.mean < 0 else 1


def verdict(found: Contrast) -> str:
    """A sentence: better, worse, no difference shown, or too few pairs to show one."""
    least = smallest_p(found.pairs)
    if least >= LEVEL:
        return f"Nothing can be shown: with {count(found.pairs)} p cannot be below {p_text(least)}."
    return ("No difference is shown at the 5 % level.", "It is worse.", "It is better.")[direction(found)]


def count(pairs: int) -> str:
    """``1 pair``, ``6 pairs``."""
    return f"{pairs} pair{'s' * (pairs != 1)}"


def to_do(planner: Planner) -> str:
    """How much of a plan is left."""
    left = planner.left()
    return f"about {left} cells of the plan are not done" if left > 0 else "the plan is complete"


def names(found: Sequence[str]) -> str:
    """In code marks, with commas."""
    return ", ".join(f"`{name}`" for name in found)


def notes(
    planner: Planner, rows: Sequence[Compared], reference: Row, primary: str | None, runs_out: str
) -> list[str]:
    """What a reader of a table of rows must know: diverged cells, few seeds, what Holm can say, rows not run.

    Args:
        primary: the row outside Holm's family, if any.
        runs_out: why rows may have fewer seeds than planned.
    """
    said = []
    bad = {row.name: seeds for row in planner.rows if (seeds := diverged(planner, row))}
    if bad:
        told = "; ".join(f"`{name}` seed {', '.join(map(str, seeds))}" for name, seeds in bad.items())
        said.append(
            f"Diverged (the loss is not a number): {told}. Such cells are in no mean and no difference, which makes "
            "those rows look better than they are."
        )
    size = family(planner, reference, primary)
    least = least_holm(rows, reference, size, primary)
    for pairs, lowest in least.items():
        line = f"With {count(pairs)} p cannot be below {p_text(smallest_p(pairs))}"
        line += f", and Holm's not below {p_text(lowest)}"
        said.append(f"{line}: such a row cannot pass 5 %." if lowest >= LEVEL else f"{line}.")
    if least:
        said[-len(least)] = f"Holm's family is the {size} planned rows. {said[-len(least)]}"
    short = [item.row.name for item in rows if len(item.finished) < len(planner.seeds)]
    if short:
        said.append(f"Fewer seeds than the {len(planner.seeds)} planned{runs_out}: {', '.join(short)}.")
    there = {item.row.name for item in rows} | set(bad)
    missing = [row.name for row in planner.rows if row.name not in there]
    if missing:
        said.append(f"Not run: {', '.join(missing)}.")
    if any(item.row.weights for item in rows):
        said.append(
            "`fixed` is tuned over its weights only: it takes the learning rate of `mean`, the grid was not searched "
            "with it."
        )
    if any(item.seen is not None and not item.seen.exact for item in rows):
        said.append("So many pairs are tested with random signs: p is not exact.")
    return said


def chance(base: Finished, reference: Row, near: Sequence[str]) -> str:
    """Where unseen languages stand beside a uniform guess."""
    levels = {tag: mean_interval(list(values(base, tag).values()))[0] for tag in UNSEEN}
    told = ", ".join(f"{level:.2f} on {tag}" for tag, level in levels.items())
    text = (
        f"A uniform guess over the 256 bytes has log 256 = {UNIFORM:.3f} nats per byte; `{reference.name}` "
    )
    text += f"has {told}."
    if near:
        text += (
            f" Within 10 % of the guess: {', '.join(near)}. There a loss says how wrong a model guesses at bytes that "
            "it has hardly met, not what it has learnt of a language, so differences are also shown without."
        )
    return text
