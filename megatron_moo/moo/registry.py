"""Every method by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .aligned_mtl import AlignedMTL
from .cagrad import CAGrad
from .coba import CoBa
from .config import ConFIG
from .crmogm import CRMOGM
from .dualproj import DualProj
from .ema import EMA
from .fairgrad import FairGrad
from .famo import FAMO
from .fixed import Fixed
from .gradvac import GradVac
from .imtl_g import IMTLG
from .mean import Mean
from .method import Method
from .mgda import MGDA
from .modo import MoDo
from .nash_mtl import NashMTL
from .options import Spec, split_pairs
from .pcgrad import PCGrad
from .random import Random
from .sdmgrad import SDMGrad
from .smoothing import Wrapper
from .sum import Sum
from .token import Token
from .upgrad import UPGrad

_CLASSES: tuple[type[Method], ...] = (
    Mean,
    Token,
    Sum,
    Fixed,
    Random,
    MGDA,
    PCGrad,
    GradVac,
    CAGrad,
    IMTLG,
    AlignedMTL,
    NashMTL,
    FairGrad,
    DualProj,
    UPGrad,
    ConFIG,
    SDMGrad,
    MoDo,
    CRMOGM,
    EMA,
    FAMO,
    CoBa,
)
_BY_NAME: Mapping[str, type[Method]] = {cls.spec.name: cls for cls in _CLASSES}

METHODS: Mapping[str, Spec] = {name: cls.spec for name, cls in _BY_NAME.items()}
"""What every method is, takes and guarantees, by name. Prefixes: ``normalized:NAME``, ``ema:NAME``,
``crmogm:NAME``."""


def make_method(name: str, **options: Any) -> Method:
    """A method by name, e.g. ``make_method("cagrad", c=0.4)``, ``make_method("normalized:mgda")``.

    ``normalized:NAME`` is NAME with ``normalize="unit"``; ``ema:NAME`` and ``crmogm:NAME`` smooth NAME's
    weights.

    Raises:
        ValueError: for an unknown name, option or value, naming it.
    """
    prefix, _, rest = name.partition(":")
    if rest and prefix == "normalized":
        return make_method(rest, **{"normalize": "unit", **options})
    if rest and prefix in _BY_NAME and issubclass(_BY_NAME[prefix], Wrapper):
        return make_method(prefix, **{"of": rest, **options})
    if name not in _BY_NAME:
        raise ValueError(f"unknown method {name!r}: choose from {', '.join(METHODS)}")
    return _BY_NAME[name](**options)


def parse_options(name: str, items: Sequence[str] | None) -> dict[str, Any]:
    """``parse_options("cagrad", ["c=0.4"])`` -> ``{"c": 0.4}``, checked against the method.

    Raises:
        ValueError: naming the option.
    """
    pairs = split_pairs(items or [])
    made = make_method(name, **pairs)
    return {option: made.options[option] for option in pairs}
