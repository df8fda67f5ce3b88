"""docs/results.md, from finished cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moo.experiment.page_parts import (
    chance,
    contrast_text,
    notes,
    number,
    p_text,
    paragraph,
    table,
    to_do,
)
from megatron_moo.experiment.page_studies import study_line, study_part
from megatron_moo.experiment.page_trial import first_attempt_part, trial_part
from megatron_moo.experiment.page_verdict import placebo_text, verdict_part
from megatron_moo.experiment.planner import Cell, Planner, score
from megatron_moo.experiment.results import Compared, compare, finished, near_uniform, paired, values
from megatron_moo.experiment.rows import LR_GRID, PRIMARY, TUNING_SEEDS, Row, weight_candidates
from megatron_moo.experiment.setting import SEEN, UNSEEN, Setting
from megatron_moo.experiment.statistics import EXACT, mean_interval
from megatron_moo.experiment.studies import Study


def write_page(
    path: Path,
    folder: Path,
    planner: Planner,
    budget: Any,
    train_bytes: Mapping[str, int],
    studies: Sequence[tuple[Study, Planner]] = (),
) -> None:
    """Write the page; with nothing to report yet it says so.

    Args:
        path: of the page.
        folder: of the run, named in the page by its last part only.
        planner: with the finished cells.
        budget: ``name``, ``seeds`` and ``setting``.
        train_bytes: training text per language.
        studies: other settings with their finished cells.
    """
    setting: Setting = budget.setting
    parts = ["# Results", _written(planner, budget)]
    reference = planner.best_baseline()
    if reference is None or not finished(planner, reference):
        parts.append("The baselines are not tuned yet: nothing is reported. The same command goes on.")
        parts.append(_what(setting, train_bytes))
    else:
        rows = compare(planner, reference)
        parts += [
            verdict_part(planner, rows, reference, setting, _later(studies)),
            _what(setting, train_bytes),
            _main(planner, rows, reference),
            _far(rows, reference),
            trial_part(planner),
            _languages(rows, reference),
            _asides(rows),
            _conflict(rows),
            _descent(rows),
        ]
    parts += [part for study, its in studies if (part := study_part(study, its))]
    parts.append(_tuning(planner))
    if aside := first_attempt_part(planner):
        parts.append(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _later(studies: Sequence[tuple[Study, Planner]]) -> str:
    """What the later placebo says, for the verdict; empty without its cells."""
    said = [study_line(study, its) for study, its in studies if study.contrast is not None]
    return " ".join(f"A placebo of that, planned later: {line}" for line in said if line)


def _written(planner: Planner, budget: Any) -> str:
    seconds = [float(result["seconds"]) for result in planner.done.values()]
    return paragraph(
        f"Written by `make experiment BUDGET={budget.name}` from {len(seconds)} finished cells "
        f"({sum(seconds) / 60:.0f} minutes of training in one process on a CPU); "
        f"{to_do(planner)}. Up to {len(planner.seeds)} seeds."
    )


def _what(s: Setting, train_bytes: Mapping[str, int]) -> str:
    sizes = ", ".join(f"{tag} {size / 1000:,.0f} kB" for tag, size in train_bytes.items())
    windows = s.valid_windows // 2
    cell = (
        f"A cell is one training run: a byte-level GPT of {s.layers} layers of width {s.hidden} "
        f"({s.parameters() / 1000:.0f} thousand parameters), {s.steps} steps of {s.tokens_per_step:,} bytes "
        f"({len(SEEN)} languages x {s.micro_batch} sequences x {s.seq}), AdamW, clipping at {s.clip:g}, warm-up and "
        "cosine. The loop gives the losses of `megatron-moo train` for the same recipe to 1e-5 "
        "(tests/end_to_end/test_experiment.py). Every row sees the same number of bytes; rows of one seed "
        "start from the same weights, and rows with one language per lane see the same batches. Training "
        f"text is capped so that languages differ in size: {sizes}. Unseen: {', '.join(UNSEEN)}."
    )
    reading = (
        f"Losses are nats per byte over {windows} held-out windows per language; as many "
        f"other windows, and other seeds ({', '.join(map(str, TUNING_SEEDS))}), chose learning rates and "
        "weights. Differences are row minus reference, paired by seed: below 0 is better. Brackets are 95 "
        f"% intervals that invert the sign-flip test; p is exact: it counts all 2^n patterns of signs (up to {EXACT} "
        f"pairs). Intervals are over seeds, that is initial weights and batches, on one fixed set of windows "
        f"({windows} x {s.seq} bytes a language): what other text would change is not in them."
    )
    return "\n\n".join(["## What was run", paragraph(cell), paragraph(reading)])


def _main(planner: Planner, rows: Sequence[Compared], reference: Row) -> str:
    body = []
    for item in rows:
        mine, base = item.row.name == PRIMARY, item.row.name == reference.name
        body.append(
            [
                f"**{item.row.label}**" if mine else item.row.label,
                f"{item.lr:g}" + ("†" if item.edge else ""),
                f"{len(item.finished)}",
                number(*mean_interval(list(values(item.finished, "seen").values()))),
                "reference" if base else contrast_text(item.seen),
                "" if item.seen is None else p_text(item.seen.p),
                "primary" if mine else "" if item.adjusted is None else p_text(item.adjusted),
            ]
        )
    head = ["row", "lr", "seeds", "seen", "difference", "p", "Holm"]
    said = [
        f"Reference: {reference.label}. ± is Student's 95 % interval over seeds. The primary row is no part of Holm's "
        "correction. † the best learning rate is an end of the grid.",
        *notes(planner, rows, reference, PRIMARY, ", since the budget was spent"),
    ]
    return "\n".join(["## All rows", "", table(head, body), "", paragraph(" ".join(said))])


def _far(rows: Sequence[Compared], reference: Row) -> str:
    base = next(item for item in rows if item.row.name == reference.name).finished
    near = near_uniform(base)
    far = tuple(tag for tag in UNSEEN if tag not in near)
    body = []
    for item in rows:
        other = item.row.name != reference.name
        line = [
            f"**{item.row.label}**" if item.row.name == PRIMARY else item.row.label,
            f"{len(item.finished)}",
            number(*mean_interval(list(values(item.finished, "unseen").values()))),
            contrast_text(item.unseen) if other else "reference",
        ]
        if near and far:
            line.append(contrast_text(paired(item.finished, base, far)) if other else "reference")
        line += [
            number(*mean_interval(list(values(item.finished, "worst").values()))),
            contrast_text(item.worst) if other else "reference",
        ]
        body.append(line)
    head = ["row", "seeds", "unseen", "difference"]
    head += [f"without {', '.join(near)}: difference"] if near and far else []
    head += ["worst seen", "difference"]
    text = f"{chance(base, reference, near)} No correction for several tests."
    return "\n".join(
        ["## Unseen languages and the worst seen one", "", table(head, body), "", paragraph(text)]
    )


def _languages(rows: Sequence[Compared], reference: Row) -> str:
    by_name = {item.row.name: item for item in rows}
    base = by_name[reference.name].finished
    names = [name for name in (PRIMARY, "placebo", "cagrad-model", "mgda-layer") if name in by_name]
    names = [name for name in names if name != reference.name]
    body = []
    for tag in (*SEEN, *UNSEEN):
        level = mean_interval(list(values(base, tag).values()))
        cells = [contrast_text(paired(by_name[name].finished, base, tag)) for name in names]
        body.append([f"{tag} (unseen)" if tag in UNSEEN else tag, number(*level), *cells])
    return "\n".join(["## Per language", "", table(["", reference.name, *names], body)])


def _asides(rows: Sequence[Compared]) -> str:
    by_name = {item.row.name: item.finished for item in rows}
    pairs = (
        ("placebo", PRIMARY, "Placebo minus primary"),
        (
            "mean",
            "mixed",
            "Does it matter that a lane holds one language? Mean over lanes minus mixed batches",
        ),
        (PRIMARY, "mean", "Primary minus plain mean over the same batches"),
        (PRIMARY, "cagrad-model", "Blocks: cagrad per layer minus per model"),
        ("cagrad-bucket", PRIMARY, "Blocks: cagrad per bucket minus per layer"),
        ("cagrad-auto", PRIMARY, "Blocks: cagrad with blocks that follow the conflict minus per layer"),
        ("cagrad-every10", PRIMARY, "Weights solved every 10 steps minus every step"),
        ("cagrad-every50", PRIMARY, "Weights solved every 50 steps minus every step"),
        ("cagrad-adam", PRIMARY, "Adam's metric minus euclidean"),
        ("pcgrad-layer", "pcgrad-model", "Blocks: pcgrad per layer minus per model"),
        ("mgda-layer", "mgda-model", "Blocks: mgda per layer minus per model"),
        ("upgrad-layer", "upgrad-model", "Blocks: upgrad per layer minus per model"),
    )
    body = []
    for one, other, question in pairs:
        if one in by_name and other in by_name:
            seen = paired(by_name[one], by_name[other], "seen")
            unseen = paired(by_name[one], by_name[other], "unseen")
            if seen is not None:
                body.append(
                    [question, f"{seen.pairs}", contrast_text(seen), p_text(seen.p), contrast_text(unseen)]
                )
    text = "Not corrected for their number: they explain the table above and decide nothing."
    head = ["", "pairs", "seen", "p", "unseen"]
    parts = ["## Questions beside it", "", text, "", table(head, body)]
    if said := placebo_text(rows):
        parts += ["", paragraph(said)]
    return "\n".join(parts)


def _mean(item: Compared, part: str, key: str) -> float | None:
    found = [result[part][key] for result in item.finished.values() if part in result]
    return sum(found) / len(found) if found else None


def _conflict(rows: Sequence[Compared]) -> str:
    body = []
    for item in rows:
        keys = ("cosine", "cosine_same", "conflict", "conflict_same")
        numbers = [_mean(item, "conflict", key) for key in keys]
        if None not in numbers:
            body.append([item.row.label, *(f"{value:.3f}" for value in numbers)])
    text = (
        "Every tenth step, from gradients of half a language's batch: two halves of *one* language differ "
        "by sampling noise alone, so they are the floor that languages are read against. Cosines are of "
        "the whole model, conflict is the share of (layer, pair) with a negative cosine. The placebo's "
        "groups are pseudo-languages."
    )
    head = ["row", "cosine, two languages", "same language", "conflict, two languages", "same language"]
    return "\n".join(["## Conflict beside its noise floor", "", paragraph(text), "", table(head, body)])


def _descent(rows: Sequence[Compared]) -> str:
    body = []
    for item in rows:
        known = [result["descent"] for result in item.finished.values() if "descent" in result]
        if not known or not known[0]["languages"]:
            continue
        each = [sum(found["each"][k] for found in known) / len(known) for k in range(len(SEEN))]
        mean, worst = _mean(item, "descent", "mean"), _mean(item, "descent", "worst")
        rising, direct = _mean(item, "descent", "rising"), _mean(item, "descent", "rising_d")
        body.append(
            [
                item.row.label,
                *(f"{1000 * value:.1f}" for value in each),
                f"{1000 * (mean or 0.0):.1f}",
                f"{1000 * (worst or 0.0):.1f}",
                f"{100 * (rising or 0.0):.2f} %",
                f"{100 * (direct or 0.0):.2f} %",
            ]
        )
    text = (
        "What the step that Adam really applied (momentum, clipping and weight decay included) does to "
        "the loss of each language's own batch to first order: fall per step in thousandths of a nat per "
        "byte, mean over the run; the worst language of each step; the share of (step, language) that it "
        "raises, and the same share for the method's direction before Adam. Rows of mixed batches are not here: their "
        "step has one gradient, not one per language. Nor is the placebo: its groups are no languages."
    )
    head = ["row", *SEEN, "mean", "worst", "raised by Adam's step", "by d"]
    return "\n".join(
        ["## First-order descent of the applied step", "", paragraph(text), "", table(head, body)]
    )


def _tuning(planner: Planner) -> str:
    body = []
    for row in planner.rows:
        chosen = planner.pick(row)
        cells = []
        for lr in LR_GRID:
            found = [_tuned_score(planner, row, lr, seed) for seed in TUNING_SEEDS]
            text = ", ".join(f"{value:.4f}" for value in found if value is not None)
            cells.append(f"**{text}**" if text and chosen is not None and chosen[0] == lr else text)
        if any(cells):
            body.append([row.label, *cells])
    text = (
        "Mean loss of the seen languages on the tuning windows, seed by seed (of fixed weights: the best candidate's, "
        "at the learning rate of `mean` only); the pick in bold."
    )
    lines = ["## Tuning", "", paragraph(text), ""]
    lines.append(table(["row", *(f"lr {lr:g}" for lr in LR_GRID)], body))
    fixed = next((row for row in planner.rows if row.weights), None)
    chosen = None if fixed is None else planner.pick(fixed)
    if chosen is not None:
        candidates = weight_candidates(len(SEEN))
        weights = ", ".join(f"{tag} {w:.3f}" for tag, w in zip(SEEN, candidates[chosen[1]], strict=True))
        told = f"Fixed weights that tuning picked, of {len(candidates)} candidates at the learning rate of `mean`"
        lines += ["", paragraph(f"{told}: {weights}.")]
    return "\n".join(lines)


def _tuned_score(planner: Planner, row: Row, lr: float, seed: int) -> float | None:
    """Score of a tuning cell; of the best candidate where weights are tuned too."""
    known = [
        score(result)
        for cell, result in planner.done.items()
        if isinstance(cell, Cell) and (cell.row, cell.lr, cell.seed) == (row.name, lr, seed)
    ]
    return min(known) if known else None
