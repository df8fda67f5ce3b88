"""Options of a method: their ranges, their defaults, and how they are read from ``name=value``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option of a method.

    Attributes:
        default: the value when none is given.
        low, high: bounds of a number (``None``: unbounded); ``open_low`` leaves the lower bound itself out,
            and ``open_high`` the upper one.
        choices: the allowed words of a textual option.
        vector: the option is a list of numbers, each within the bounds. text: it is a word, checked by who
            uses it.
        help: one line for the table of methods.
    """

    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    open_high: bool = False
    choices: tuple[str, ...] = ()
    vector: bool = False
    text: bool = False

    @property
    def range(self) -> str:
        """The allowed values in words, e.g. ``[0, 1)`` or ``min | rmse``."""
        if self.choices:
            return " | ".join(self.choices)
        if self.text:
            return "a name"
        if isinstance(self.default, bool):
            return "true | false"
        left = "(-inf" if self.low is None else f"{'(' if self.open_low else '['}{self.low:g}"
        right = "inf)" if self.high is None else f"{self.high:g}{')' if self.open_high else ']'}"
        kind = "whole numbers in " if isinstance(self.default, int) else "list of " if self.vector else ""
        return f"{kind}{left}, {right}"

    def check(self, name: str, value: Any) -> Any:
        """The value in its own type.

        Raises:
            ValueError: naming the option, the value and the allowed range.
        """
        try:
            checked = self._convert(value)
        except (TypeError, ValueError):
            raise ValueError(f"option {name}={value!r}: expected {self.range}") from None
        numbers = checked if self.vector and checked is not None else (checked,)
        if not all(self._within(item) for item in numbers):
            raise ValueError(f"option {name}={value!r}: expected {self.range}")
        return checked

    def _convert(self, value: Any) -> Any:
        if self.vector:
            if value is None:
                return None
            items = value.replace("/", ",").split(",") if isinstance(value, str) else value
            return tuple(float(item) for item in items)
        if self.choices or self.text:
            return str(value)
        if isinstance(self.default, bool):
            return _boolean(value)
        if isinstance(self.default, int):
            if float(value) != int(float(value)):
                raise ValueError(value)
            return int(float(value))
        return float(value)

    def _within(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if value is None or isinstance(value, (bool, str)):
            return True
        if not math.isfinite(value):
            return False
        above = self.low is None or value > self.low or (value == self.low and not self.open_low)
        below = self.high is None or value < self.high or (value == self.high and not self.open_high)
        return above and below


def _boolean(value: Any) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word not in words:
        raise ValueError(value)
    return words[word]


@dataclass(frozen=True)
class Spec:
    """What a method is and what it guarantees; ``METHODS`` holds one per name, the table of methods is made
    from them.

    Attributes:
        name: the name users write.
        paper: where it comes from.
        problem: the weights, in one formula.
        options: its own options by name (``COMMON`` come on top).
        needs: keyword arguments it cannot do without; ``takes``: those that it uses when they are given.
        preference: a preference vector takes the place of u.
        state: it remembers something between calls, per block.
        random: it draws from hash(seed, step, block name).
        gramian: the weights depend on G (False: baselines that ignore it).
        non_conflicting: ``<g_k, d> >= 0`` for every present row k.
        equivariant: permuting the rows permutes the weights.
        scale: how d answers to J -> s J: "linear" (d -> s d) or "constant" (d stays) or in words.
    """

    name: str
    paper: str
    problem: str
    options: Mapping[str, Option] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    preference: bool = False
    state: bool = False
    random: bool = False
    gramian: bool = True
    non_conflicting: bool = False
    equivariant: bool = True
    scale: str = "linear"


COMMON: Mapping[str, Option] = {
    "normalize": Option(
        "none",
        "scale the rows first: to unit norm, or to the largest norm of the block (DB-MTL)",
        choices=("none", "unit", "max"),
    ),
}


def checked_options(spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """Defaults overridden by ``given``.

    Raises:
        ValueError: for an option that the method does not have, or a value out of range.
    """
    known = {**COMMON, **spec.options}
    for name in given:
        if name not in known:
            raise ValueError(f"option {name}: {spec.name} has only {', '.join(sorted(known))}")
    return {name: option.check(name, given.get(name, option.default)) for name, option in known.items()}


def split_pairs(items: Sequence[str]) -> dict[str, str]:
    """``["c=0.4"]`` -> ``{"c": "0.4"}``.

    Raises:
        ValueError: naming the item that is not ``name=value``, or the option that is given twice.
    """
    pairs: dict[str, str] = {}
    for item in items:
        name, equals, value = item.partition("=")
        name, value = name.strip(), value.strip()
        if not equals or not name or not value:
            raise ValueError(f"option {item!r}: expected name=value")
        if name in pairs:
            raise ValueError(f"option {name}: given twice")
        pairs[name] = value
    return pairs
