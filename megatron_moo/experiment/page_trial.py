"""What stands of the trial that the experiment was asked to check, and the first attempt that was set aside."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from megatron_moo.experiment.page_parts import contrast_text, direction, number, p_text, paragraph, table
from megatron_moo.experiment.planner import Cell, Planner
from megatron_moo.experiment.results import Finished, finished, is_finite, near_uniform, paired, values
from megatron_moo.experiment.rows import BY_NAME, FIRST_SEED, LR_GRID, PRIMARY
from megatron_moo.experiment.setting import UNSEEN
from megatron_moo.experiment.statistics import Contrast, mean_interval


@dataclass(frozen=True)
class Claim:
    """What the trial said: a row minus plain ``mean``, nats per byte, and its ± as reported."""

    row: str
    what: str
    mean: float | None = None
    half: float = 0.0

    def said(self) -> str:
        """As in the trial's report."""
        return "worse" if self.mean is None else f"{self.mean:+.3f} ± {self.half:.3f}"

    def ruling(self, found: Contrast | None) -> str:
        """Whether it stands beside our contrast of the same rows."""
        if found is None:
            return "not run"
        if math.isinf(found.low):
            return "too few seeds to say"
        way, expected = direction(found), -1 if self.mean is not None else 1
        if way == -expected:
            return "the opposite is shown"
        if self.mean is None:
            return "stands" if way else "not shown"
        low, high = self.mean - self.half, self.mean + self.half
        apart = found.low > high or found.high < low
        if way == 0:
            size = "and the interval leaves out an effect of that size" if apart else "nor is it excluded"
            return f"not shown, {size}"
        if not apart:
            return "stands"
        return "a gain stands, a smaller one" if found.mean > self.mean else "a gain stands, a larger one"


CLAIMS = (
    Claim(PRIMARY, "seen", -0.131, 0.038),
    Claim(PRIMARY, "unseen", -0.078, 0.024),
    Claim("mgda-layer", "seen"),
)


def trial_found(planner: Planner) -> list[tuple[Claim, Contrast | None]]:
    """Our contrast for every claim of the trial."""
    cells = {name: finished(planner, BY_NAME[name]) for name in (PRIMARY, "mgda-layer", "mean")}
    return [(claim, paired(cells[claim.row], cells["mean"], claim.what)) for claim in CLAIMS]


def trial_line(planner: Planner) -> str:
    """For the verdict at the top."""
    told = "; ".join(
        f"`{claim.row}` on {claim.what} languages {claim.said()}: {claim.ruling(found)}"
        for claim, found in trial_found(planner)
    )
    return f"[The trial](#the-trial) that came before, minus plain `mean`: {told}."


def trial_part(planner: Planner) -> str:
    """The section."""
    body = []
    for claim, found in trial_found(planner):
        ours = [] if found is None else [contrast_text(found), f"{found.pairs}", p_text(found.p)]
        ours = ours or ["", "", ""]
        body.append([f"`{claim.row}`, {claim.what}", claim.said(), *ours, f"**{claim.ruling(found)}**"])
    mean, primary = (finished(planner, BY_NAME[name]) for name in ("mean", PRIMARY))
    near = near_uniform(mean) if mean else ()
    if near and (found := paired(primary, mean, tuple(tag for tag in UNSEEN if tag not in near))):
        ours = [contrast_text(found), f"{found.pairs}", p_text(found.p)]
        body.append([f"`{PRIMARY}`, unseen without {', '.join(near)}", "", *ours, ""])
    text = (
        "Before this experiment a trial of 3 seeds and 100 steps, its learning rate not tuned, saw layer-wise cagrad "
        "0.131 ± 0.038 nats per byte better than `mean` on seen and 0.078 ± 0.024 on unseen languages, and mgda worse "
        "on seen. Here are the same differences, row minus `mean` over the same batches, with learning rates tuned "
        "for each row and the steps of this page. What the trial's ± stands for was not written down. No correction "
        "for several tests."
    )
    parts = [
        "## The trial",
        paragraph(text),
        table(["row minus `mean`", "trial", "here", "pairs", "p", "does it stand?"], body),
    ]
    if same := _same_rate(planner):
        parts.append(same)
    return "\n\n".join(parts)


def _same_rate(planner: Planner) -> str:
    """The primary row minus mean where both have one learning rate, on the tuning seeds."""
    told = []
    for lr in LR_GRID:
        ours, theirs = (
            {
                seed: result
                for seed in planner.tuning_seeds
                if (result := planner.done.get(Cell(row, lr, seed))) is not None and is_finite(result)
            }
            for row in (PRIMARY, "mean")
        )
        both = [paired(ours, theirs, what) for what in ("seen", "unseen")]
        if both[0] is not None and both[1] is not None:
            told.append(f"at {lr:g} {both[0].mean:+.3f} and {both[1].mean:+.3f} (pairs: {both[0].pairs})")
    if not told:
        return ""
    return paragraph(
        "Without tuning, that is with one learning rate for both rows, the tuning seeds say on the reported "
        f"windows: `{PRIMARY}` minus `mean`, seen and unseen, is {'; '.join(told)}. The trial's shorter runs were not "
        "repeated."
    )


def _groups(planner: Planner) -> dict[tuple[str, float, int], Finished]:
    groups: dict[tuple[str, float, int], dict[int, Mapping[str, Any]]] = {}
    for cell, result in planner.done.items():
        if cell.seed < FIRST_SEED and is_finite(result):
            groups.setdefault((cell.row, cell.lr, cell.candidate), {})[cell.seed] = result
    return groups


def _first_mean(groups: Mapping[tuple[str, float, int], Finished]) -> Finished:
    return next((found for (row, _, _), found in groups.items() if row == "mean"), {})


def first_attempt_line(planner: Planner) -> str:
    """Beside the verdict: these seeds are a second try. Empty without such cells."""
    groups = _groups(planner)
    own = next((found for (row, _, _), found in groups.items() if row == PRIMARY), {})
    found = paired(own, _first_mean(groups), "seen")
    if found is None:
        return ""
    return (
        f"**These seeds are a second attempt.** In the first, seen once and then [set "
        f"aside](#a-first-attempt-set-aside), `{PRIMARY}` minus `mean` was "
        f"{contrast_text(found)} on seen languages over {found.pairs} pairs, "
        f"p = {p_text(found.p)}; the protocol (more tuning seeds, new reported seeds) was changed after that."
    )


def first_attempt_part(planner: Planner) -> str:
    """Its cells; empty without any."""
    groups = _groups(planner)
    mean = _first_mean(groups)
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
