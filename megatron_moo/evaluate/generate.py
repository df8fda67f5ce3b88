"""Samples of a model's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from megatron_moo.data.tokenizers import Tokenizer


@torch.no_grad()
def continue_text(
    model: Any,
    tokenizer: Tokenizer,
    prompt: str,
    new_tokens: int,
    max_length: int,
    temperature: float = 0.0,
    seed: int = 0,
    bos: Sequence[int] = (),
) -> str:
    """What the model writes after a prompt, up to the end of its document.

    Args:
        temperature: 0 takes the likeliest token.
        seed: of the draws.
        bos: ids before the prompt; they stay when the text outgrows the window.
    """
    ids = tokenizer.encode_batch([prompt])[0]
    generator = torch.Generator().manual_seed(seed)
    written: list[int] = []
    for _ in range(new_tokens):
        text = [*ids, *written][-(max_length - len(bos)) :]
        given = torch.tensor([[*bos, *text] or [tokenizer.eod]], device=model.device)
        logits = model(given, use_cache=False).logits[0, -1].float().cpu()[: tokenizer.vocab_size]
        if temperature > 0:
            token = int(torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator))
        else:
            token = int(logits.argmax())
        if token == tokenizer.eod:
            break
        written.append(token)
    return tokenizer.decode(written)
