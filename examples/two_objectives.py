"""The classical two-objective problem, solved by every method side by side.

    python examples/two_objectives.py [--out runs/two_objectives.png] [--steps 600]

Two functions of a point in the plane (Liu et al., CAGrad, arXiv 2110.14048; Navon et al., Nash-MTL, arXiv 2202.01017):
above the horizontal axis both have steep, nearly opposed valleys in which the mean gets stuck; below it the Pareto
set is the line between their minima. Every start is a block of its own, so one call of a method moves all of them.
The picture shows the contours of the mean loss, the path from every start (dot) to its end (ring), and the Pareto set.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from megatron_moo.moo import METHODS, make_method

STARTS = torch.tensor([[-8.5, 7.5], [-8.5, -5.0], [0.0, 6.0], [9.0, 9.0], [10.0, -8.0]], dtype=torch.float64)
BLOCKS = [f"start {i}" for i in range(len(STARTS))]


def losses(point: Tensor) -> Tensor:
    """Both losses at points ``[..., 2]``: ``[..., 2]``."""
    x, y = point.unbind(-1)
    above, below = (0.5 * y).tanh().clamp(min=0), (-0.5 * y).tanh().clamp(min=0)
    valley_1 = ((0.5 * (-x - 7) - (-y).tanh()).abs().clamp(min=5e-6)).log() + 6
    valley_2 = ((0.5 * (-x + 3) - (-y).tanh() + 2).abs().clamp(min=5e-6)).log() + 6
    bowl_1 = ((-x + 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    bowl_2 = ((-x - 7) ** 2 + 0.1 * (-y - 8) ** 2) / 10 - 20
    return torch.stack([above * valley_1 + below * bowl_1, above * valley_2 + below * bowl_2], -1)


def jacobian(point: Tensor) -> Tensor:
    """Gradients of both losses as rows, ``[B, 2, 2]``."""
    point = point.detach().requires_grad_()
    both = losses(point).unbind(-1)
    rows = [torch.autograd.grad(loss.sum(), point, retain_graph=True)[0] for loss in both]
    return torch.stack(rows, 1)


def path(name: str, steps: int, lr: float = 0.05) -> Tensor:
    """Points visited by Adam on the method's direction, ``[steps + 1, starts, 2]``."""
    method = make_method(name)
    point = torch.nn.Parameter(STARTS.clone())
    optimizer = torch.optim.Adam([point], lr=lr)
    visited = [STARTS]
    for step in range(steps):
        J = jacobian(point)
        w = method(
            J @ J.mT,
            tokens=[1.0, 1.0],
            losses=losses(point.detach()) + 30.0,  # FAMO and CoBa want them positive
            step=step,
            block=BLOCKS,
        )
        point.grad = torch.einsum("bk,bkn->bn", w, J)
        optimizer.step()
        visited.append(point.detach().clone())
    return torch.stack(visited)


def draw(paths: dict[str, Tensor], out: Path) -> None:
    """One panel per method."""
    columns = 6
    rows = -(-len(paths) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.7 * rows), sharex=True, sharey=True)
    x, y = torch.meshgrid(torch.linspace(-11, 11, 160), torch.linspace(-11, 11, 160), indexing="xy")
    mean = losses(torch.stack([x, y], -1)).mean(-1)
    for axis, (name, visited) in zip(axes.flat, paths.items(), strict=False):
        axis.contour(x, y, mean, levels=20, linewidths=0.4, cmap="viridis")
        axis.plot([-7, 7], [-8, -8], color="0.6", linewidth=4, solid_capstyle="round", zorder=1)
        for start in range(visited.shape[1]):
            line = visited[:, start]
            axis.plot(line[:, 0], line[:, 1], color=f"C{start}", linewidth=1.2)
            axis.plot(*line[0], "o", color=f"C{start}", markersize=3)
            axis.plot(*line[-1], "o", color=f"C{start}", markersize=6, markerfacecolor="none")
        axis.set_title(name, fontsize=10)
        axis.set_aspect("equal")
        axis.set_xlim(-11, 11)
        axis.set_ylim(-11, 11)
    for axis in list(axes.flat)[len(paths) :]:
        axis.set_axis_off()
    figure.suptitle("Paths from five starts (dot) to their ends (ring); grey: the Pareto set", fontsize=11)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, Tensor]:
    """Draw the picture and return the paths by method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/two_objectives.png"))
    parser.add_argument("--steps", type=int, default=600)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    names = [*METHODS, "normalized:mgda", "normalized:cagrad"]
    paths = {name: path(name, chosen.steps) for name in names}
    draw(paths, chosen.out)
    return paths


if __name__ == "__main__":
    main()
