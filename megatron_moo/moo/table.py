"""The table of methods, made from ``METHODS``: ``python -m megatron_moo.moo.table [--write docs/methods.md]``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import COMMON, Option, Spec
from .registry import METHODS

_HEAD = """# Methods

Made from `megatron_moo.moo.METHODS` by `python -m megatron_moo.moo.table --write docs/methods.md`; a test compares.

`make_method(name, **options)(G)` maps Gramians `[..., K, K]` to weights `[..., K]` of `d = sum_k w_k g_k`. On the
command line: `--moo-method cagrad --moo-option c=0.4`. G = J J^T, u = preference (1/K), s = row norms,
C = G / (s s^T). `normalized:NAME` is NAME with `normalize=unit`; `ema:NAME` and `crmogm:NAME` smooth the weights of
NAME, whose options may be given too. Each file `megatron_moo/moo/NAME.py` says what its method does in degenerate
cases; everywhere a zero or non-finite row is dropped (weight 0, the others as if it were not there; `mean`, `token`,
`sum`, `fixed` and `random` do not renormalise), and a block without any usable row gets weights 0 and the flag
`all_bad`.

Errors against independent solutions: [solver-errors.md](solver-errors.md); speed: [solver-speed.md](solver-speed.md).
Paths of every method on the classical two-objective problem (`python examples/two_objectives.py --out
docs/images/two_objectives.png`):

![Two objectives](images/two_objectives.png)

"""


def table() -> str:
    """The page in Markdown."""
    lines = [_HEAD + "| method | weights | source | needs | takes | state |", "|---|---|---|---|---|---|"]
    lines += [_row(spec) for spec in METHODS.values()]
    lines += ["", "## What each guarantees", ""]
    lines += [
        "| method | `<g_k, d> >= 0` for all k | permutation-equivariant | J -> a J |",
        "|---|---|---|---|",
    ]
    lines += [_guarantees(spec) for spec in METHODS.values()]
    lines += [
        "",
        "## Options",
        "",
        "| method | option | range | default | meaning |",
        "|---|---|---|---|---|",
    ]
    for spec in METHODS.values():
        lines += [_option(spec.name, name, option) for name, option in spec.options.items()]
    lines += [_option("every method", name, option) for name, option in COMMON.items()]
    return "\n".join(lines) + "\n"


def _row(spec: Spec) -> str:
    takes = [*spec.takes, *(["preference"] if spec.preference else [])]
    state = " + ".join(word for word, there in (("per block", spec.state), ("draws", spec.random)) if there)
    cells = [f"`{spec.name}`", f"`{spec.problem}`", spec.paper, _code(spec.needs), _code(takes), state or "-"]
    return _cells(cells)


def _guarantees(spec: Spec) -> str:
    scale = {"linear": "d -> a d", "constant": "d stays"}.get(spec.scale, spec.scale)
    equivariant = (
        "yes" if spec.equivariant else "with `order=` permuted too" if "order" in spec.takes else "no"
    )
    return _cells([f"`{spec.name}`", "yes" if spec.non_conflicting else "no", equivariant, scale])


def _option(method: str, name: str, option: Option) -> str:
    default = "-" if option.default is None else f"`{option.default}`"
    where = f"`{method}`" if method in METHODS else method
    return _cells([where, f"`{name}`", option.range, default, option.help])


def _code(words: tuple[str, ...] | list[str]) -> str:
    return ", ".join(f"`{word}=`" for word in words) or "-"


def _cells(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def main(arguments: list[str] | None = None) -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path, help="the file to write")
    path = parser.parse_args(arguments).write
    if path is None:
        sys.stdout.write(table())
    else:
        path.write_text(table())


if __name__ == "__main__":
    main()
