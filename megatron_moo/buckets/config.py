"""Settings of Bucket-Level MOO, read once from the arguments at the border."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from megatron_moo.buckets.blocks import BLOCKS
from megatron_moo.buckets.hierarchy import EXCHANGES
from megatron_moo.buckets.wire import WIRES
from megatron_moo.errors import MooError

RESCALES = ("none", "mean")
ROW_DTYPES = ("fp32", "bf16")
METRICS = ("euclidean", "adam")


@dataclass(frozen=True)
class MooConfig:
    """What a user chose.

    Attributes:
        method: a name of ``megatron_moo.moo.METHODS``.
        options: the method's options.
        block: the parameters that share one set of weights, one of ``BLOCKS``.
        slots: S, passes per step, each with its own objective per lane.
        rescale: ``mean`` gives the update of a block the norm of the mean gradient.
        row_dtype: dtype in which the rows of earlier slots are kept, ``fp32`` or ``bf16``.
        seed: of everything random in the methods.
        exclude: regular expression of parameters that stay at the plain mean, or None.
        observe: measure Gramians and conflict, leave the update to Megatron.
        every: solve every so many steps; in between, cached weights and Megatron's own reduce-scatter.
        recompute: keep the rows of at most so many slots and repeat passes for the rest; 0 keeps all.
        metric: inner product of the Gramians; ``adam`` weighs every value by 1 / (sqrt(v) + eps) of the optimizer.
        wire: dtype in which rows travel, one of ``WIRES``.
        wire_feedback: add to a row what the wire lost of the one before.
        exchange: one of ``EXCHANGES``: all at once, or ranks of one objective first.
        auto_every: steps between decisions of ``block`` ``auto``.
        strength: (from, to, steps): the update goes from the plain mean (0) to the method's (1) as this ramp says.
        ranks_per_node: where ranks are, for ``exchange``; None asks for their host names.
    """

    method: str = "cagrad"
    options: dict[str, Any] = field(default_factory=dict)
    block: str = "layer"
    slots: int = 1
    rescale: str = "none"
    row_dtype: str = "fp32"
    seed: int = 1234
    exclude: str | None = None
    observe: bool = False
    every: int = 1
    recompute: int = 0
    metric: str = "euclidean"
    wire: str = "fp32"
    wire_feedback: bool = False
    exchange: str = "auto"
    ranks_per_node: int | None = None
    auto_every: int = 50
    strength: tuple[float, float, int] = (1.0, 1.0, 1)

    def __post_init__(self) -> None:
        for flag, value, choices in (
            ("--moo-block", self.block, BLOCKS),
            ("--moo-rescale", self.rescale, RESCALES),
            ("--moo-rows", self.row_dtype, ROW_DTYPES),
            ("--moo-metric", self.metric, METRICS),
            ("--moo-wire", self.wire, WIRES),
            ("--moo-exchange", self.exchange, EXCHANGES),
        ):
            if value not in choices:
                raise MooError(f"unknown value {value!r}", flag, f"choose from {', '.join(choices)}")
        if self.slots < 1:
            raise MooError(f"{self.slots} slots", "--moo-slots", "give at least 1")
        if self.every < 1:
            raise MooError(f"{self.every} steps", "--moo-every", "give at least 1")
        if self.wire != "fp32" and self.observe:
            raise MooError("rounds the rows, --moo-observe changes nothing", "--moo-wire")
        if self.wire_feedback and self.wire == "fp32":
            raise MooError("fp32 loses nothing", "--moo-wire-feedback", "give --moo-wire bf16 or fp8")
        if self.wire_feedback and self.recompute:
            raise MooError(
                "rounds a repeated pass otherwise than its first", "--moo-wire-feedback", "drop one of them"
            )
        if self.exchange == "hierarchical" and self.observe:
            raise MooError(
                "sums in another order, --moo-observe changes nothing", "--moo-exchange", "use flat or auto"
            )
        if self.ranks_per_node is not None and self.ranks_per_node < 1:
            raise MooError(f"{self.ranks_per_node} ranks", "--moo-ranks-per-node", "give at least 1")
        if self.auto_every < 2:
            raise MooError(
                f"{self.auto_every} steps", "--moo-auto-every", "give at least 2: a spread needs two steps"
            )
        if not (0.0 <= self.strength[0] <= 1.0 and 0.0 <= self.strength[1] <= 1.0 and self.strength[2] >= 1):
            raise MooError(
                f"{self.strength} is not between 0 and 1, over at least 1 step",
                "--moo-strength",
                "give e.g. 0:1:500",
            )
        if self.recompute < 0:
            raise MooError(f"{self.recompute} slots", "--moo-recompute", "give at least 1")
        if self.recompute and self.observe:
            raise MooError("changes the passes, --moo-observe changes nothing", "--moo-recompute")
        if self.every > 1 and self.observe:
            raise MooError("does nothing with --moo-observe, which never uses weights", "--moo-every")
        if self.exclude is not None:
            try:
                re.compile(self.exclude)
            except re.error as error:
                raise MooError(
                    f"{self.exclude!r} is no regular expression ({error})", "--moo-exclude"
                ) from None

    def strength_at(self, step: int) -> float:
        """How much of the method's update a step (counted from 0) takes; the rest is the plain mean."""
        first, last, steps = self.strength
        return first + (last - first) * min(1.0, step / steps)
