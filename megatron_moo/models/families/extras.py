"""Settings of a family for which Megatron has no flag.

They travel in Megatron's own ``--spec`` flag, so that a recipe, a command line, a checkpoint's arguments and
``--use-checkpoint-args`` all carry them: ``--spec megatron_moo FAMILY name=JSON …``. A family that plain
Megatron flags describe needs no spec.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from megatron_moo.errors import MooError

MARK = "megatron_moo"


@dataclass(frozen=True)
class Extras:
    """What the modules of :mod:`megatron_moo.models.modules` read; every default changes nothing.

    Attributes:
        family: name of the family.
        vocab: real rows of a padded vocabulary; the others get no probability.
        rope: ``base`` and, when scaled, ``type`` (linear, llama3, yarn) with its parameters.
        local_rope: the same for the layers with a window, when they differ.
        embedding_multiplier: of the embedding's output.
        residual_multiplier: of what attention and MLP add.
        softmax_scale: of attention scores; None is one over the root of the head size.
        attention_softcap: c in ``c tanh(scores / c)``.
        logit_multiplier: of the logits.
        logit_softcap: c in ``c tanh(logits / c)``.
        post_norms: ``also`` (norms after attention and MLP beside those before) or ``only``.
        qk_norm: ``wide``: one RMSNorm over all heads of q, and one over all of k.
        activation: ``gelu_tanh`` (gated) or ``xielu`` (not gated).
        parallel: attention and MLP read the same norm and are added together.
        norm_bias: whether a LayerNorm has a bias.
    """

    family: str
    vocab: int | None = None
    rope: dict[str, Any] | None = None
    local_rope: dict[str, Any] | None = None
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0
    softmax_scale: float | None = None
    attention_softcap: float | None = None
    logit_multiplier: float = 1.0
    logit_softcap: float | None = None
    post_norms: str | None = None
    qk_norm: str | None = None
    activation: str | None = None
    parallel: bool = False
    norm_bias: bool = True


_NAMES = {item.name for item in fields(Extras)} - {"family"}


def to_spec(family: str, extras: dict[str, Any]) -> list[str]:
    """Value of ``--spec``; empty when there is nothing to say."""
    if not extras:
        return []
    given = asdict(Extras(family, **extras))
    return [
        MARK,
        family,
        *(f"{name}={json.dumps(given[name], separators=(',', ':'))}" for name in sorted(extras)),
    ]


def from_spec(spec: Sequence[str] | None) -> Extras | None:
    """Settings in ``--spec``, or None when it is not ours.

    Raises:
        MooError: for a setting that we do not know.
    """
    if not spec or spec[0] != MARK:
        return None
    if len(spec) < 2:
        raise MooError(
            "lacks the family", "--spec megatron_moo", "copy the flag from the checkpoint's model.yaml"
        )
    values = {}
    for item in spec[2:]:
        name, _, text = str(item).partition("=")
        if name not in _NAMES:
            raise MooError(
                f"unknown setting {name!r}", "--spec megatron_moo", f"known are {', '.join(sorted(_NAMES))}"
            )
        try:
            values[name] = json.loads(text)
        except ValueError:
            raise MooError(f"{item!r} is not NAME=JSON", "--spec megatron_moo") from None
    return Extras(str(spec[1]), **values)
