"""Samples to the tensors of a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_moo.data.views import Sample

if TYPE_CHECKING:
    import torch


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """Stack samples to torch tensors [micro_batch_size, seq].

    Packed samples carry ``segment_ids``; their batches also get Megatron's boolean ``attention_mask`` [b, 1,
    s, s] (True:
    must not attend) and ``cu_seqlens`` (int32, over the batch laid end to end, as variable-length kernels
    want them).
    """
    import torch

    batch: dict[str, Any] = {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}
    if "segment_ids" in batch:
        batch["attention_mask"] = document_mask(batch["segment_ids"])
        batch["cu_seqlens"] = cu_seqlens(batch["segment_ids"])
    return batch


def document_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Causal mask inside documents: [b, s] ids -> bool [b, 1, s, s], True where a query must not attend to a
    key."""
    import torch

    length = segment_ids.shape[-1]
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    return ~(same & causal)


def cu_seqlens(segment_ids: torch.Tensor) -> torch.Tensor:
    """Bounds of the documents of a batch laid end to end: int32 [documents + 1], from 0 to b * s."""
    import torch

    batch, length = segment_ids.shape
    change = torch.ones(batch, length, dtype=torch.bool, device=segment_ids.device)
    change[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    starts = torch.nonzero(change.flatten()).flatten().to(torch.int32)
    return torch.cat([starts, starts.new_tensor([batch * length])])
