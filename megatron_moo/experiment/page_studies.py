"""The parts of docs/results.md about other settings."""

from __future__ import annotations

from megatron_moo.experiment.page_parts import (
    chance,
    contrast_text,
    count,
    direction,
    notes,
    number,
    p_text,
    paragraph,
    table,
    to_do,
    verdict,
)
from megatron_moo.experiment.planner import Planner
from megatron_moo.experiment.results import compare, finished, near_uniform, paired, values
from megatron_moo.experiment.rows import PRIMARY
from megatron_moo.experiment.setting import UNSEEN
from megatron_moo.experiment.statistics import mean_interval
from megatron_moo.experiment.studies import Study


def study_part(study: Study, planner: Planner) -> str:
    """One study; empty while it has no reported cells."""
    reference = planner.best_baseline()
    if reference is None or not finished(planner, reference):
        return ""
    if study.contrast and not study_line(study, planner):
        return ""
    rows = compare(planner, reference, primary=None)
    base = next(item for item in rows if item.row.name == reference.name).finished
    near, rare = near_uniform(base), study.setting.rare
    far = tuple(tag for tag in UNSEEN if tag not in near)
    body = []
    for item in rows:
        other = item.row.name != reference.name
        line = [
            f"**{item.row.label}**" if item.row.name == PRIMARY else item.row.label,
            f"{item.lr:g}" + ("†" if item.edge else ""),
            f"{len(item.finished)}",
            number(*mean_interval(list(values(item.finished, "seen").values()))),
            contrast_text(item.seen) if other else "reference",
            "" if item.seen is None else p_text(item.seen.p),
            "" if item.adjusted is None else p_text(item.adjusted),
            contrast_text(item.unseen),
        ]
        if near and far:
            line.append(contrast_text(paired(item.finished, base, far)) if other else "")
        if rare is not None:
            line.append(contrast_text(paired(item.finished, base, rare[0])) if other else "")
        body.append(line)
    head = ["row", "lr", "seeds", "seen", "difference", "p", "Holm", "unseen: difference"]
    head += [f"without {', '.join(near)}"] if near and far else []
    head += [] if rare is None else [f"{rare[0]}: difference"]
    seconds = sum(float(result["seconds"]) for result in planner.done.values())
    seeds = (
        "one tuning seed" if len(planner.tuning_seeds) == 1 else f"{len(planner.tuning_seeds)} tuning seeds"
    )
    fixed = (
        "Its one contrast stands above."
        if study.contrast
        else "No contrast was fixed for it: this part explores."
    )
    said = [
        f"{len(planner.done)} cells, {seconds / 60:.0f} minutes; {to_do(planner)}. "
        f"Learning rates are from the same grid, on {seeds}. Reference: {reference.label}, the best tuned "
        f"baseline here. {fixed} Holm's correction is over all its rows. "
        "† the best learning rate is an end of the grid.",
        *notes(planner, rows, reference, None, ""),
        chance(base, reference, near),
    ]
    parts = [f"## {study.title}", "", paragraph(study.text), ""]
    if told := study_line(study, planner):
        parts += [paragraph(f"**{told}**"), ""]
    return "\n".join([*parts, table(head, body), "", paragraph(" ".join(said))])


def study_line(study: Study, planner: Planner) -> str:
    """A study's own contrast in a sentence; empty while it has no reported cells."""
    reference = planner.best_baseline()
    if reference is None:
        return ""
    cells = {row.name: finished(planner, row) for row in planner.rows}
    name, other = study.contrast or (PRIMARY, reference.name)
    own = paired(cells.get(name, {}), cells.get(other, {}), "seen")
    if own is None:
        return ""
    told = f"`{name}` minus `{other}`, seen: {contrast_text(own)} over {count(own.pairs)}"
    told += f", p = {p_text(own.p)}. {verdict(own)}"
    sham = paired(cells.get(name, {}), cells.get("mean", {}), "seen") if study.contrast else None
    if sham is not None and direction(sham) < 0 and direction(own) <= 0:
        told += (
            f" `{name}` gains over `mean` ({contrast_text(sham)}): that gain is not about languages, and that "
            f"`{other}` gains anything beyond it is not shown."
        )
    return told
