"""One forward pass: a language-tagged micro-batch in, the summed loss and its tokens out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Record = Callable[[int | torch.Tensor, torch.Tensor, torch.Tensor], None]


def forward_step(
    data_iterator: Any, model: Any, *, record: Callable[[dict], Record]
) -> tuple[torch.Tensor, Any]:
    """Megatron's forward step.

    Args:
        data_iterator: yields batches of ``megatron_moo.data`` (``tokens``, ``labels``, ``loss_mask``,
            ``position_ids`` of ``[b, s]``, ``language`` as an index or one per row ``[b]``, optionally
            ``attention_mask`` ``[b, 1, s, s]``).
        model: the model chunk.
        record: given the batch, says where ``(language, summed loss, tokens)`` is written.
    """
    batch = on_this_rank(next(data_iterator))
    output = model(
        batch["tokens"], batch["position_ids"], batch.get("attention_mask"), labels=batch["labels"]
    )
    return output, partial(loss_func, batch["loss_mask"], batch["language"], record(batch))


def loss_func(
    loss_mask: torch.Tensor, language: int | torch.Tensor, record: Record, losses: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Sum the loss over the tokens that count.

    Returns:
        The summed loss, the number of tokens (int32) and Megatron's report ``{"lm loss": [sum, tokens]}``.
    """
    mask = loss_mask.float()
    losses = losses.reshape(mask.shape).float() * mask
    loss, tokens = losses.sum(), mask.sum().to(torch.int)
    if isinstance(language, torch.Tensor):
        record(language, losses.detach().sum(-1), mask.sum(-1))
    else:
        record(language, loss.detach(), tokens)
    return loss, tokens, {"lm loss": torch.stack([loss.detach(), tokens.float()])}


def on_this_rank(batch: dict[str, Any]) -> dict[str, Any]:
    """Move a batch to the device and keep this context-parallel rank's part of the sequence.

    The attention mask stays whole: attention masks by position in the whole sequence.
    """
    from megatron.core import parallel_state

    from megatron_moo.models.modules.attention import zigzag_positions

    device = torch.cuda.current_device()
    moved = {
        name: value.to(device=device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }
    size = parallel_state.get_context_parallel_world_size()
    if size > 1:
        length = moved["tokens"].shape[1]
        mine = zigzag_positions(length, size, moved["tokens"].device)[
            parallel_state.get_context_parallel_rank()
        ]
        for name in ("tokens", "labels", "loss_mask", "position_ids"):
            moved[name] = moved[name][:, mine]
    return moved
