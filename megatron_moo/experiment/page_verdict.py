"""The first screen of docs/results.md: what came out, computed from the cells."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_moo.experiment.page_parts import (
    LEVEL,
    contrast_text,
    direction,
    names,
    p_text,
    paragraph,
    verdict,
)
from megatron_moo.experiment.page_trial import first_attempt_line, trial_line
from megatron_moo.experiment.planner import Planner
from megatron_moo.experiment.results import (
    Compared,
    diverged,
    family,
    least_holm,
    near_uniform,
    paired,
    values,
)
from megatron_moo.experiment.rows import PRIMARY, WEIGHT_CANDIDATES, Row
from megatron_moo.experiment.setting import UNSEEN, Setting

_UNTESTED = f" Only `{PRIMARY}` has a placebo: whether these gains are about languages was not tested."


def verdict_part(
    planner: Planner, rows: Sequence[Compared], reference: Row, setting: Setting, later: str = ""
) -> str:
    """The section; ``later`` says what a placebo of the rows that passed gave."""
    points = [
        _primary(planner, rows, reference),
        first_attempt_line(planner),
        trial_line(planner),
        placebo_text(rows),
        _others(planner, rows, reference, later),
        _unseen(rows, reference),
        "**This does not test the paper's claims**, which are about 8B models. A model this small is where "
        f"interference between languages is largest, the text is software help, and {setting.steps} steps are the "
        "beginning of a training run. [examples/paper](../examples/paper/README.md) is the run that would test them. "
        "The same with a real model, one seed: [smollm2.md](smollm2.md).",
    ]
    lines = [paragraph(f"- {point}").replace("\n", "\n  ") for point in points if point]
    return "\n".join(["## Verdict", "", *lines])


def _primary(planner: Planner, rows: Sequence[Compared], reference: Row) -> str:
    when = "before these seeds were run" if first_attempt_line(planner) else "before the run"
    contrast = (
        f"This is the one primary contrast, fixed {when} (`megatron_moo/experiment/rows.py`): the mean loss of the "
        f"seen languages against the best baseline, which tuning says is `{reference.name}` ({reference.label}"
    )
    if reference.weights:
        contrast += (
            f": {WEIGHT_CANDIDATES} candidates at the learning rate of `mean`, no learning rate of its own"
        )
    contrast += ")."
    found = next((item for item in rows if item.row.name == PRIMARY), None)
    head = f"`{PRIMARY}` minus the best tuned baseline, `{reference.name}`, seen languages"
    if found is None or found.seen is None:
        return f"**{head}: no pair of cells is finished.** {contrast}"
    c, said = found.seen, verdict(found.seen)
    if direction(c) < 0 and (lost := diverged(planner, found.row)):
        said = f"It diverged on seeds {', '.join(map(str, lost))}, so no gain is claimed from the others."
    worst = (
        ""
        if found.worst is None
        else f" On the worst seen language: {contrast_text(found.worst)}, not corrected."
    )
    exact = "" if c.exact else " (random signs)"
    return (
        f"**{head}: {contrast_text(c)} nats per byte over {c.pairs} paired seeds, p = {p_text(c.p)}{exact}. {said}** "
        f"{contrast}{worst}"
    )


def placebo_text(rows: Sequence[Compared]) -> str:
    """Whether a gain is about languages, if there is one; empty without the cells."""
    cells = {item.row.name: item.finished for item in rows}
    if not {"placebo", PRIMARY, "mean"} <= set(cells):
        return ""
    between = paired(cells["placebo"], cells[PRIMARY], "seen")
    gain, sham = (paired(cells[name], cells["mean"], "seen") for name in (PRIMARY, "placebo"))
    if between is None or gain is None or sham is None:
        return ""
    way = direction(between)
    if direction(gain) < 0:
        said = {
            1: "The gain over `mean` is larger than what the placebo gains: that part of it is about languages.",
            0: f"`{PRIMARY}` gains over `mean`, but is not told apart from the placebo: that the gain is about "
            "languages is not shown.",
            -1: f"`{PRIMARY}` gains over `mean`, but the placebo gains more: the gain is not about languages.",
        }[way]
    else:
        said = f"`{PRIMARY}` shows no gain over `mean` ({contrast_text(gain)}), so there is none to explain"
        said += {1: ", and the placebo is worse.", 0: ".", -1: ", and the placebo is better than it."}[way]
        if direction(sham) < 0:
            said += (
                f" The placebo itself gains over `mean` ({contrast_text(sham)}): that is not about languages."
            )
    return (
        f"Placebo (the same method over pseudo-languages) minus `{PRIMARY}`, seen: {contrast_text(between)}, "
        f"p = {p_text(between.p)}. {said}"
    )


def _others(planner: Planner, rows: Sequence[Compared], reference: Row, later: str) -> str:
    tested = [
        item for item in rows if item.row.name not in (PRIMARY, reference.name) and item.seen is not None
    ]
    passed = [item for item in tested if item.adjusted is not None and item.adjusted < LEVEL]
    others = [item for item in tested if item not in passed]
    size = family(planner, reference)
    text = (
        f"Of the {size} other planned rows against `{reference.name}` on seen languages, after Holm's correction: "
        f"{_sides(passed)}."
    )
    if any(direction(item.seen) for item in others):
        text += f" Below 5 % only without the correction: {_sides(others)}."
    if any(
        direction(item.seen) < 0 and not item.row.baseline and item.row.name != "placebo" for item in passed
    ):
        text += f" {later}" if later else _UNTESTED
    least = least_holm(rows, reference, size, PRIMARY)
    blind = [item for item in tested if item.seen is not None and least[item.seen.pairs] >= LEVEL]
    if blind:
        text += f" {len(blind)} of them have too few pairs to pass whatever their effect, for so many rows."
    if len(tested) < size:
        text += f" {size - len(tested)} have no pairs yet and count as p = 1."
    return text


def _sides(found: Sequence[Compared]) -> str:
    """Those shown to be better, with their differences, and the names of those shown to be worse."""
    better = [f"`{item.row.name}` {contrast_text(item.seen)}" for item in found if direction(item.seen) < 0]
    worse = [item.row.name for item in found if direction(item.seen) > 0]
    return f"better {', '.join(better) or 'none'}; worse {names(worse) or 'none'}"


def _unseen(rows: Sequence[Compared], reference: Row) -> str:
    by_name = {item.row.name: item for item in rows}
    found, base = by_name.get(PRIMARY), by_name[reference.name].finished
    if found is None or found.unseen is None or reference.name == PRIMARY:
        return ""
    text = f"Unseen languages, `{PRIMARY}` minus `{reference.name}`: {contrast_text(found.unseen)}, not corrected."
    near = near_uniform(base)
    if not near:
        return text
    parts = {tag: paired(found.finished, base, tag) for tag in near}
    told = ", ".join(
        f"{part.mean / len(UNSEEN):+.4f} of it is {tag} alone"
        for tag, part in parts.items()
        if part is not None
    )
    level = ", ".join(f"{tag} {sum(values(base, tag).values()) / len(base):.2f}" for tag in near)
    text += f" {told[0].upper()}{told[1:]}, where the model is near a uniform guess ({level}); without: "
    far = tuple(tag for tag in UNSEEN if tag not in near)
    return text + (contrast_text(paired(found.finished, base, far)) if far else "nothing is left") + "."
