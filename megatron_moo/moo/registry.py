"""Every method by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .cagrad import CAGrad
from .dualproj import DualProj
from .fixed import Fixed
from .mean import Mean
from .method import Method
from .mgda import MGDA
from .options import COMMON, Spec, split_pairs
from .pcgrad import PCGrad
from .sum import Sum
from .token import Token
from .upgrad import UPGrad

_CLASSES: Mapping[str, type[Method]] = {
    cls.spec.name: cls for cls in (Mean, Token, Sum, Fixed, MGDA, PCGrad, CAGrad, DualProj, UPGrad)
}
METHODS: Mapping[str, Spec] = {name: cls.spec for name, cls in _CLASSES.items()}


def make_method(name: str, **options: Any) -> Method:
    """A method by name, e.g. ``make_method("cagrad", c=0.4)`` or ``make_method("normalized:mgda")``.

    Raises:
        ValueError: for an unknown name, option or value, naming it.
    """
    prefix, _, base = name.rpartition(":")
    if prefix not in ("", "normalized") or base not in _CLASSES:
        raise ValueError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    if prefix:
        options = {"normalize": "unit", **options}
    return _CLASSES[base](**options)


def parse_options(name: str, items: Sequence[str] | None) -> dict[str, Any]:
    """``parse_options("cagrad", ["c=0.4"])`` -> ``{"c": 0.4}``, checked against the method.

    Raises:
        ValueError: naming the option.
    """
    pairs = split_pairs(items or [])
    made = make_method(name, **pairs)
    return {option: made.options[option] for option in pairs}


__all__ = ["COMMON", "METHODS", "make_method", "parse_options"]
