"""docs/slurm-run.md and docs/images/slurm.png from a :class:`~tests.slurm.story.Story`."""

from __future__ import annotations

import re
from pathlib import Path

from tests.slurm.story import ROOT, Losses, Story, told

PAGE = ROOT / "docs" / "slurm-run.md"
IMAGE = ROOT / "docs" / "images" / "slurm.png"
HEAD = """\
# A run that was pre-empted three times

Written by `python -m tests.slurm.story` ({version}, two slurmd on one machine, two ranks on each, CPU, gloo). The same
is the slow test `tests/end_to_end/test_slurm.py`. `examples/slurm/many_nodes.sbatch` was submitted as it is, with
`sbatch --nodes=2 --gpus-per-node=0 --cpus-per-task=2` and `NPROC=2`; nothing of it was run on a cluster or a GPU.

{stops}

All {steps} steps have the losses of the run that was left alone, {languages} languages each: largest difference
{difference:g}. SLURM counted {restarts} restarts; {left} processes of the job were left.

![Loss per language of both runs](images/slurm.png)

What the job wrote about itself:

```text
{log}
```
"""


def mean(losses: Losses) -> dict[int, float]:
    return {step: sum(values.values()) / len(values) for step, values in sorted(losses.items())}


def difference(story: Story) -> float:
    """Largest difference of a step's loss in any language; infinite where steps or languages differ."""
    pairs = []
    for step in {*story.alone, *story.preempted}:
        one, other = story.alone.get(step, {}), story.preempted.get(step, {})
        if set(one) != set(other):
            return float("inf")
        pairs += [abs(one[tag] - other[tag]) for tag in one]
    return max(pairs)


def write_page(story: Story, scratch: str) -> None:
    """Draw both curves, and write the page without paths of this machine."""
    draw(story, IMAGE)
    lines = [f"{number}. {how}: step {step} was saved" for number, (how, step) in enumerate(story.stops, 1)]
    log = "\n".join(told(story.log)).replace(scratch, "…").replace(str(ROOT), "…")
    PAGE.write_text(
        HEAD.format(
            version=story.version,
            stops="\n".join(lines),
            steps=len(story.preempted),
            languages=len(next(iter(story.preempted.values()))),
            difference=difference(story),
            restarts=story.restarts,
            left=len(story.left),
            log=re.sub(r"run folder \S+", "run folder …", log),
        ),
        encoding="utf-8",
    )


def draw(story: Story, path: Path) -> None:
    """The mean loss of both runs, and where the second was stopped."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.6), layout="constrained")
    alone, preempted = mean(story.alone), mean(story.preempted)
    axes.plot(list(alone), list(alone.values()), color="#c0c0c0", linewidth=5, label="left alone")
    axes.plot(list(preempted), list(preempted.values()), color="#1f4e8c", linewidth=1.2, label="pre-empted")
    for number, (how, step) in enumerate(story.stops, 1):
        axes.axvline(step, color="#b03a2e", linewidth=0.8, linestyle="--")
        axes.annotate(f" {number}", (step, max(alone.values())), color="#b03a2e", va="top")
        axes.plot([], [], color="#b03a2e", linewidth=0.8, linestyle="--", label=f"{number} {how}")
    axes.set(xlabel="step", ylabel="mean loss of four languages, nats per token")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
