"""docs/results.md, from finished cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moo.experiment.page_parts import contrast_text, number, p_text, paragraph, table
from megatron_moo.experiment.page_studies import study_part
from megatron_moo.experiment.planner import Cell, Planner, score
from megatron_moo.experiment.results import Compared, compare, finished, paired, values
from megatron_moo.experiment.rows import LR_GRID, PRIMARY, TUNING_SEEDS, Row, weight_candidates
from megatron_moo.experiment.setting import SEEN, UNSEEN, Setting
from megatron_moo.experiment.statistics import mean_interval
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
    parts = [_head(planner, budget, train_bytes)]
    reference = planner.best_baseline()
    if reference is None or not finished(planner, reference):
        parts.append("The baselines are not tuned yet: nothing is reported. The same command goes on.")
    else:
        rows = compare(planner, reference)
        parts += [
            _primary(rows, reference),
            _main(planner, rows, reference),
            _languages(rows, reference),
            _asides(planner, rows),
            _conflict(rows),
            _descent(rows),
        ]
    parts += [part for study, its in studies if (part := study_part(study, its))]
    parts.append(_tuning(planner))
    if aside := _set_aside(planner):
        parts.append(aside)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _head(planner: Planner, budget: Any, train_bytes: Mapping[str, int]) -> str:
    s: Setting = budget.setting
    seconds = [float(result["seconds"]) for result in planner.done.values()]
    sizes = ", ".join(f"{tag} {size / 1000:,.0f} kB" for tag, size in train_bytes.items())
    opening = (
        f"Written by `make experiment BUDGET={budget.name}` from {len(seconds)} finished cells "
        f"({sum(seconds) / 60:.0f} minutes of training in one process on a CPU); about {planner.left()} "
        f"cells of the plan are not done. Up to {len(planner.seeds)} seeds."
    )
    caution = (
        "**This does not test the paper's claims**, which are about 8B models. A model this small is "
        f"where interference between languages is largest, the text is software help, and {s.steps} steps "
        "are the beginning of a training run. [examples/paper](../examples/paper/README.md) is the run "
        "that would test them."
    )
    cell = (
        f"A cell is one training run: a byte-level GPT of {s.layers} layers of width {s.hidden} (168 "
        f"thousand parameters), {s.steps} steps of {s.tokens_per_step:,} bytes ({len(SEEN)} languages x "
        f"{s.micro_batch} sequences x {s.seq}), AdamW, clipping at {s.clip:g}, warm-up and cosine. The "
        "loop gives the losses of `megatron-moo train` for the same recipe to 1e-5 "
        "(tests/end_to_end/test_experiment.py). Every row sees the same number of bytes; rows of one seed "
        "start from the same weights, and rows with one language per lane see the same batches. Training "
        f"text is capped so that languages differ in size: {sizes}. Unseen: {', '.join(UNSEEN)}."
    )
    reading = (
        f"Losses are nats per byte over {s.valid_windows // 2} held-out windows per language; as many "
        f"other windows, and other seeds ({', '.join(map(str, TUNING_SEEDS))}), chose learning rates and "
        "weights. Differences are row minus reference, paired by seed: below 0 is better. Brackets are 95 "
        "% intervals that invert the sign-flip test; p is exact."
    )
    return "\n\n".join(["# Results", *map(paragraph, (opening, caution, cell, reading))])


def _primary(rows: Sequence[Compared], reference: Row) -> str:
    found = next((item for item in rows if item.row.name == PRIMARY), None)
    lines = [
        "## The primary contrast",
        "",
        paragraph(
            f"Fixed before the run (`megatron_moo/experiment/rows.py`): `{PRIMARY}` against the best tuned "
            f"baseline, which tuning says is `{reference.name}` ({reference.label}), on the mean loss of "
            "the seen languages."
        ),
        "",
    ]
    if found is None or found.seen is None:
        return "\n".join([*lines, "No pair of cells is finished."])
    c = found.seen
    if c.p >= 0.05:
        verdict = "No difference is shown at the 5 % level."
    else:
        verdict = "It is better." if c.mean < 0 else "It is worse."
    lines.append(
        f"**{contrast_text(c)} nats per byte over {c.pairs} paired seeds, p = {p_text(c.p)}. {verdict}**"
    )
    for what, other in (("unseen languages", found.unseen), ("the worst seen language", found.worst)):
        if other is not None:
            lines.append(f"On {what}: {contrast_text(other)} (not part of the contrast, no correction).")
    return "\n".join(lines)


def _main(planner: Planner, rows: Sequence[Compared], reference: Row) -> str:
    body = []
    for item in rows:
        seen, unseen = (values(item.finished, what).values() for what in ("seen", "unseen"))
        mine = item.row.name == PRIMARY
        body.append(
            [
                f"**{item.row.label}**" if mine else item.row.label,
                f"{item.lr:g}" + ("†" if item.edge else ""),
                f"{len(item.finished)}",
                number(*mean_interval(list(seen))),
                "reference" if item.row.name == reference.name else contrast_text(item.seen),
                "" if item.seen is None else p_text(item.seen.p),
                "" if mine or item.adjusted is None else p_text(item.adjusted),
                number(*mean_interval(list(unseen))),
                contrast_text(item.unseen),
                contrast_text(item.worst),
            ]
        )
    head = [
        "row",
        "lr",
        "seeds",
        "seen",
        "difference",
        "p",
        "Holm",
        "unseen",
        "difference",
        "worst: difference",
    ]
    notes = [
        f"Reference: {reference.label}. ± is Student's 95 % interval over seeds. Holm's correction is over "
        "all rows but the primary one. † the best learning rate is an end of the grid."
    ]
    short = [item.row.name for item in rows if len(item.finished) < len(planner.seeds)]
    if short:
        notes.append(
            f"Fewer seeds than planned, since the budget was spent: {', '.join(short)}. With n pairs p "
            "cannot be below 2 / 2^n: five pairs cannot reach 5 %."
        )
    missing = [row.name for row in planner.rows if row.name not in {item.row.name for item in rows}]
    if missing:
        notes.append(f"Not run: {', '.join(missing)}.")
    return "\n".join(["## All rows", "", table(head, body), "", paragraph(" ".join(notes))])


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


def _asides(planner: Planner, rows: Sequence[Compared]) -> str:
    by_name = {item.row.name: item.finished for item in rows}
    pairs = (
        ("placebo", PRIMARY, "Is the gain about languages? Placebo minus primary (near 0: no)"),
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
    head = ["", "seeds", "seen", "p", "unseen"]
    return "\n".join(["## Questions beside it", "", text, "", table(head, body)])


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
        "raises, and the same share for the method's direction before Adam."
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
    lines = [
        "## Tuning",
        "",
        "Mean loss of the seen languages on the tuning windows, seed by seed (of fixed weights: the best candidate's); "
        "the pick in bold.",
        "",
    ]
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


def _set_aside(planner: Planner) -> str:
    """Cells whose seed belongs to no part of the present protocol; empty without any."""
    cells = [cell for cell in planner.done if cell.seed not in (*TUNING_SEEDS, *planner.seeds)]
    groups: dict[tuple[str, float, int], dict[int, Mapping[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell.row, cell.lr, cell.candidate), {})[cell.seed] = planner.done[cell]
    mean = next((found for (row, _, _), found in groups.items() if row == "mean"), {})
    body = []
    for (row, lr, _), found in groups.items():
        level = mean_interval(list(values(found, "seen").values()))
        difference = "" if row == "mean" else contrast_text(paired(found, mean, "seen"))
        body.append([row, f"{lr:g}", f"{len(found)}", number(*level), difference])
    if not body:
        return ""
    text = (
        "Two tuning seeds chose these learning rates (and fixed weights); what they put first came last on the "
        "reported seeds. The protocol above took more tuning seeds and new seeds to report; these cells count for "
        "nothing in it."
    )
    head = ["row", "lr", "seeds", "seen", "difference to mean"]
    return "\n".join(["## A first attempt, set aside", "", paragraph(text), "", table(head, body)])
