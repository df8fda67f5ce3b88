"""What a family says about one model: sizes, Megatron's flags, settings of ours, and where every tensor lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from megatron_moo.models.families.config import Config
from megatron_moo.models.families.layouts import COPY, Layout

LAYERS = "decoder.layers."
EXPERTS = ".mlp.experts.experts."


@dataclass(frozen=True)
class Rule:
    """One tensor of Megatron's checkpoint and the tensors of Hugging Face's that it is made of.

    Attributes:
        megatron: key in the ``torch_dist`` checkpoint; below ``decoder.layers.`` it has a leading axis of
            layers, and
            below ``mlp.experts.experts.`` a second one of experts.
        hf: names, with ``{layer}`` and ``{expert}`` to fill in. A rule over experts whose names lack
            ``{expert}`` finds
            every expert in one tensor with a leading axis.
        shapes: shape of every part as names of :attr:`Model.dims`, without that axis.
        layout: how the parts lie in the whole.
        alias: a second key of the same tensor, where Transformer Engine's spec and the local one differ: written too,
            and read when the first is missing.
    """

    megatron: str
    hf: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]
    layout: Layout = COPY
    alias: str | None = None

    @property
    def per_layer(self) -> bool:
        return self.megatron.startswith(LAYERS)

    @property
    def per_expert(self) -> bool:
        return EXPERTS in self.megatron

    @property
    def experts_in_one(self) -> bool:
        """Whether one Hugging Face tensor holds all experts."""
        return self.per_expert and "{expert}" not in self.hf[0]


@dataclass(frozen=True)
class Model:
    """A model as both worlds see it.

    Attributes:
        family: name of the family.
        layers: number of layers.
        dims: sizes by name.
        flags: Megatron's flags.
        extras: settings of ours that Megatron has no flag for (:mod:`megatron_moo.models.families.extras`).
        rules: where every tensor lies.
        constants: tensors of the Hugging Face checkpoint that are no parameters, by name (filled in like a rule's),
            and their values; checked on import, written on export.
    """

    family: str
    layers: int
    dims: dict[str, int]
    flags: dict[str, Any]
    extras: dict[str, Any]
    rules: tuple[Rule, ...]
    constants: dict[str, float] = field(default_factory=dict)

    def shapes(self, rule: Rule) -> list[tuple[int, ...]]:
        """Shapes of a rule's parts."""
        return [tuple(self.dims[name] for name in shape) for shape in rule.shapes]

    def whole_shape(self, rule: Rule) -> tuple[int, ...]:
        """Shape of one layer's (and one expert's) tensor in Megatron's layout."""
        parts = [torch.empty(shape, device="meta") for shape in self.shapes(rule)]
        return tuple(rule.layout.join(parts, self.dims).shape)

    def axes(self, rule: Rule) -> tuple[int, ...]:
        """Leading axes of the rule's tensor in the checkpoint."""
        layers = (self.layers,) if rule.per_layer else ()
        return (*layers, self.dims["experts"]) if rule.per_expert else layers

    def places(self, rule: Rule) -> Iterator[tuple[int, ...]]:
        """Every index into the leading axes, in order."""
        sizes = self.axes(rule)
        if not sizes:
            yield ()
        elif len(sizes) == 1:
            yield from ((i,) for i in range(sizes[0]))
        else:
            yield from ((i, j) for i in range(sizes[0]) for j in range(sizes[1]))

    def names(self, rule: Rule, place: tuple[int, ...]) -> list[str]:
        """Hugging Face names of a rule's parts at a place."""
        layer = place[0] if place else 0
        expert = place[1] if len(place) > 1 else 0
        return [name.format(layer=layer, expert=expert) for name in rule.hf]

    def hf_count(self) -> int:
        """Number of tensors that the Hugging Face checkpoint must hold, without naming them."""
        return sum(
            len(rule.hf) * math.prod(self.axes(rule)[: 1 if rule.experts_in_one else None])
            for rule in self.rules
        )

    def hf_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the Hugging Face checkpoint must hold, and its shape."""
        return dict(self.hf_tensors())

    def hf_tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The same one by one; experts in one tensor come once for every layer."""
        for rule in self.rules:
            shapes = self.shapes(rule)
            lead = (self.dims["experts"],) if rule.experts_in_one else ()
            for place in self.places(rule):
                if rule.experts_in_one and place[1]:
                    continue
                for name, shape in zip(self.names(rule, place), shapes, strict=True):
                    yield name, (*lead, *shape)

    def with_dims(self, **dims: int) -> Model:
        """The same with other sizes."""
        return replace(self, dims={**self.dims, **dims})


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        name: ours; also the model's ``model_type``.
        architectures: Hugging Face architectures that it reads.
        read: config to model.
        about: one line for the table.
    """

    name: str
    architectures: tuple[str, ...]
    read: Callable[[Config], Model]
    about: str
