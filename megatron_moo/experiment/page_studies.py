"""The parts of docs/results.md about other settings."""

from __future__ import annotations

from megatron_moo.experiment.page_parts import contrast_text, number, p_text, paragraph, table
from megatron_moo.experiment.planner import Planner
from megatron_moo.experiment.results import compare, finished, paired, values
from megatron_moo.experiment.rows import PRIMARY
from megatron_moo.experiment.statistics import mean_interval
from megatron_moo.experiment.studies import Study


def study_part(study: Study, planner: Planner) -> str:
    """One study; empty while it has no reported cells."""
    reference = planner.best_baseline()
    if reference is None or not finished(planner, reference):
        return ""
    rows = compare(planner, reference)
    base = next(item for item in rows if item.row.name == reference.name).finished
    rare = study.setting.rare
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
            contrast_text(item.unseen),
        ]
        if rare is not None:
            line.append(contrast_text(paired(item.finished, base, rare[0])) if other else "")
        body.append(line)
    head = ["row", "lr", "seeds", "seen", "difference", "p", "unseen: difference"]
    head += [] if rare is None else [f"{rare[0]}: difference"]
    seconds = sum(float(result["seconds"]) for result in planner.done.values())
    notes = (
        f"{len(planner.done)} cells, {seconds / 60:.0f} minutes; about {planner.left()} cells of the plan are not "
        "done. "
        f"Learning rates are from the same grid, on one tuning seed. Reference: {reference.label}, the best tuned "
        "baseline here. p is not corrected for the number of rows: this part explores. † the best learning rate is an "
        "end of the grid."
    )
    missing = [row.name for row in planner.rows if row.name not in {item.row.name for item in rows}]
    if missing:
        notes += f" Not run: {', '.join(missing)}."
    return "\n".join(
        [f"## {study.title}", "", paragraph(study.text), "", table(head, body), "", paragraph(notes)]
    )
