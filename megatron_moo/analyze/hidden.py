"""Representations of aligned sentences, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import torch

from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText, Key
from megatron_moo.evaluate.model import Opened


@dataclass
class Hidden:
    """What the layers say.

    Attributes:
        languages: tags.
        states: per layer (0 is the embedding) ``[L, N, H]``, mean over a sentence's tokens but the first, where many
            models park massive activations that say nothing of the sentence (Sun et al. 2024, arXiv 2402.17762).
        active: per MLP ``[L, neurons]``, share of tokens on which the gate is above 0; empty for a model without
            gates that are found.
    """

    languages: tuple[str, ...]
    states: list[np.ndarray]
    active: list[np.ndarray]


def common_sentences(texts: Mapping[str, AlignedText], count: int, least: int = 20) -> list[Key]:
    """Paragraphs that every language has, at least ``least`` characters in the first, none twice; by a hash.

    Raises:
        MooError: fewer than 8 are left.
    """
    first = next(iter(texts.values()))
    common = set.intersection(*(set(text.paragraphs) for text in texts.values()))
    seen: set[str] = set()
    kept: list[Key] = []
    for key in sorted(common, key=lambda k: (crc32(f"{k[0]}#{k[1]}".encode()), k)):
        text = first.paragraphs[key]
        if len(text) >= least and text not in seen and len(kept) < count:
            seen.add(text)
            kept.append(key)
    if len(kept) < 8:
        raise MooError(
            f"{len(kept)} paragraphs are in all of {', '.join(texts)}",
            "--text",
            "give fewer languages or more text",
        )
    return kept


def collect(
    opened: Opened,
    texts: Mapping[str, AlignedText],
    keys: Sequence[Key],
    tokens: int = 128,
    batch: int = 16,
    tell: Callable[[str], None] = lambda line: None,
) -> Hidden:
    """Run the model over every language's sentences.

    Args:
        keys: which paragraphs.
        tokens: of a sentence, at most.
        batch: sentences at a time.
    """
    gates = _Gates(opened.model)
    states: list[list[np.ndarray]] = []
    active: list[list[np.ndarray]] = []
    most = min(tokens, opened.max_length)
    try:
        for tag, text in texts.items():
            tell(tag)
            rows = opened.tokenizer.encode_batch([text.paragraphs[key] for key in keys])
            ids = [[*opened.bos, *row][:most] for row in rows]
            layers, counts = _language(opened.model, gates, ids, batch, len(opened.bos))
            states.append(layers)
            active.append(counts)
    finally:
        gates.remove()
    return Hidden(
        tuple(texts),
        [np.stack(layer) for layer in zip(*states, strict=True)],
        [np.stack(layer) for layer in zip(*active, strict=True)],
    )


@torch.no_grad()
def _language(
    model: Any, gates: _Gates, ids: Sequence[Sequence[int]], batch: int, bos: int = 0
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Per layer ``[N, H]``, and per MLP ``[neurons]``; the first ``bos`` tokens are no text and count in neither."""
    pooled: list[list[torch.Tensor]] = []
    sums: list[torch.Tensor] = []
    total = 0
    for start in range(0, len(ids), batch):
        rows = [row or [0] for row in ids[start : start + batch]]
        width = max(map(len, rows))
        # Padding on the right: a causal model never looks there.
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=model.device)
        mask = torch.tensor(
            [[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows], device=model.device
        )
        text = mask.clone()
        text[:, :bos] = 0.0
        gates.seen = []
        hidden = model(padded, output_hidden_states=True, use_cache=False).hidden_states
        means = [_pooled(h.float(), mask, max(1, bos)) for h in hidden]
        pooled = (
            [[m] for m in means] if not pooled else [[*old, m] for old, m in zip(pooled, means, strict=True)]
        )
        counts = [((gate > 0).float() * text[..., None]).sum((0, 1)).double() for gate in gates.seen]
        sums = counts if not sums else [old + new for old, new in zip(sums, counts, strict=True)]
        total += int(text.sum())
    return (
        [torch.cat(layer).double().cpu().numpy() for layer in pooled],
        [(count / total).cpu().numpy() for count in sums],
    )


def _pooled(hidden: torch.Tensor, mask: torch.Tensor, skip: int = 1) -> torch.Tensor:
    """Mean over the tokens of ``[b, s, H]`` but the first ``skip``; of a sentence of so few tokens, over all."""
    rest = mask.clone()
    rest[:, :skip] = (mask[:, :skip] * (mask.sum(1, keepdim=True) <= skip)).float()
    return (hidden * rest[..., None]).sum(1) / rest.sum(1, keepdim=True)


class _Gates:
    """Hooks on the activation functions of the MLPs (``…mlp.act_fn``), as Llama, Qwen, Gemma and Mistral have them."""

    def __init__(self, model: Any) -> None:
        self.seen: list[torch.Tensor] = []
        self._hooks = [
            module.register_forward_hook(self._note)
            for name, module in model.named_modules()
            if name.endswith("mlp.act_fn")
        ]

    def _note(self, _module: Any, inputs: Any, _output: Any) -> None:
        self.seen.append(inputs[0].detach())

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
