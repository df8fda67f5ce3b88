"""Errors of the solvers against independent solutions on J, and TorchJD's beside them.

    python bench/moo_errors.py [--write docs/solver-errors.md]

Every cell is the worst ``||d - d_oracle|| / ||J||_F`` over K from 1 to 64 and scales from 1e-15 to 1e15, for G in fp64.
The oracles and the kinds of rows are those of the tests (tests/unit/moo).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from megatron_moo.moo import make_method  # noqa: E402
from tests.unit.moo import cases, oracles  # noqa: E402

COUNT = 5
SMALL = (1, 2, 3, 5, 8)


def _cagrad(J: np.ndarray) -> np.ndarray:
    return oracles.cagrad_by_support(J, 0.5)


METHODS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str, tuple[int, ...], float]] = {
    "mgda": (oracles.mgda_by_nnls, "non-negative least squares on J", cases.SIZES, 1e-6),
    "dualproj": (oracles.dualproj, "non-negative least squares on J", cases.SIZES, 1e-6),
    "upgrad": (oracles.upgrad, "non-negative least squares on J", cases.SIZES, 1e-6),
    "imtl_g": (oracles.imtl_g, "60 digits, or singular vectors of J", cases.SIZES, 1e-6),
    "config": (oracles.config, "60 digits, or singular vectors of J", cases.SIZES, 1e-6),
    "cagrad": (_cagrad, "every support, on J", SMALL, 1e-5),
}


def worst(method: str, kind: str) -> tuple[float, float]:
    """(our error, the error of the exact solution of the rounded G where ours is above 1e-7) at worst."""
    oracle, _, sizes, _ = METHODS[method]
    error, lost = 0.0, 0.0
    for k in sizes:
        jacobians = list(cases.jacobians(kind, k, COUNT if k <= 16 else 2))
        solver = make_method(method)
        weights = solver(torch.stack([torch.tensor(J @ J.T) for J in jacobians])).numpy()
        undefined = solver.flags.get("undefined", torch.zeros(len(jacobians), dtype=torch.bool))
        for J, w, named in zip(jacobians, weights, undefined, strict=True):
            if named:  # 0/0 has a named value that the oracle does not know
                continue
            reference = oracle(J)
            here = float(np.linalg.norm(w @ J - reference) / np.linalg.norm(J))
            error = max(error, here)
            if here > 1e-7 and method in ("imtl_g", "config"):
                exact = oracles.from_rounded_gramian(method, J)
                lost = max(lost, float(np.linalg.norm(exact - reference) / np.linalg.norm(J)))
    return error, lost


def torchjd_errors() -> list[str]:
    """TorchJD's errors on random and on conflicting rows of norm about 1."""
    from torchjd import aggregation as tj

    theirs = {
        "mgda": tj.MGDA,
        "dualproj": tj.DualProj,
        "upgrad": tj.UPGrad,
        "imtl_g": tj.IMTLG,
        "config": tj.ConFIG,
        "cagrad": partial(tj.CAGrad, c=0.5),
    }
    lines = [
        "| method | random rows | rows whose sum is nearly 0 | ||J||_F = 1e-3 |".replace(
            "||J||", "\\|\\|J\\|\\|"
        )
    ]
    lines.append("|---|---|---|---|")
    for name, make in theirs.items():
        try:
            aggregator = make()
        except ImportError as error:  # quadprog is GPL and no requirement of ours
            lines.append(f"| {name} | not installed: {error.name or 'quadprog, qpsolvers'} | | |")
            continue
        cells = []
        for kind, scale in (("random_rows", 1.0), ("stationary", 1.0), ("random_rows", 1e-3)):
            errors = [0.0]
            for k in (2, 3, 5, 8):
                for J in cases.jacobians(kind, k, COUNT, seed=1):
                    J = J / np.linalg.norm(J) + (0.02 if kind == "stationary" else 0.0)
                    J = scale * J / np.linalg.norm(J)
                    d = aggregator(torch.tensor(J)).numpy()
                    errors.append(float(np.linalg.norm(d - METHODS[name][0](J)) / np.linalg.norm(J)))
            cells.append(f"{max(errors):.0e}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def page() -> str:
    """The whole report in Markdown."""
    names = list(METHODS)
    lines = [
        "# Errors of the solvers",
        "",
        "Made by `python bench/moo_errors.py --write docs/solver-errors.md` (part of `make bench`). Every cell is the",
        f"worst `||d - d_oracle|| / ||J||_F` over K = {', '.join(map(str, cases.SIZES))} (cagrad: up to 8; above, a",
        "duality certificate in the tests) and scales from 1e-15 to 1e15, G in fp64. Blocks flagged `undefined` (0/0",
        "with a named value) are left out. In brackets, where ours is above 1e-7: the error of the EXACT solution (60",
        "digits) of G as rounded to fp64, which no solver that is given G can beat.",
        "",
        "| rows | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for kind in cases.KINDS:
        cells = []
        for name in names:
            error, lost = worst(name, kind)
            cells.append(f"{error:.0e}" + (f" ({lost:.0e})" if lost else ""))
        lines.append(f"| {kind.replace('_', ' ')} | " + " | ".join(cells) + " |")
    lines.append("| promised | " + " | ".join(f"{METHODS[name][3]:.0e}" for name in names) + " |")
    lines.append("| oracle | " + " | ".join(METHODS[name][1] for name in names) + " |")
    lines += ["", "## TorchJD on ordinary rows, against the same oracles", "", *torchjd_errors()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the report, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="also write the page to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Solution may be inaccurate")
    text = page()
    print(text)
    if arguments.write:
        arguments.write.write_text(text)


if __name__ == "__main__":
    main()
