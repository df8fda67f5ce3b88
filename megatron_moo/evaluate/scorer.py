"""A batched scorer of log-likelihoods, for any causal model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from megatron_moo.data.tokenizers import Tokenizer
from megatron_moo.data.views import WindowView


@dataclass(frozen=True)
class Request:
    """Tokens that are given, and those whose log-likelihood is asked for."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Tokens:
    """Documents end to end, each closed by the end-of-document id, as a corpus's stream."""

    def __init__(self, documents: Sequence[Sequence[int]], eod: int) -> None:
        self._all = np.concatenate([np.array([*ids, eod], np.int64) for ids in documents])

    def __len__(self) -> int:
        return len(self._all)

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens ``[start, start + count)``."""
        return self._all[start : start + count]


class Scorer:
    """Args: transformers' model, most tokens of a sequence, and of a batch with its padding."""

    def __init__(self, model: Any, max_length: int, batch_tokens: int = 2048) -> None:
        self.model, self.max_length, self.batch_tokens = model, max_length, batch_tokens

    def loglikelihoods(self, requests: Sequence[Request]) -> list[float]:
        """Sum of the log-probabilities of every continuation, in nats.

        Contexts that do not fit are cut on the left. Longest first, so that memory runs out at once or never.
        """
        order = sorted(range(len(requests)), key=lambda i: -len(self._whole(requests[i])))
        found = [0.0] * len(requests)
        start = 0
        while start < len(order):
            longest = max(1, len(self._whole(requests[order[start]])) - 1)
            batch = order[start : start + max(1, self.batch_tokens // longest)]
            for index, value in zip(batch, self._batch([requests[i] for i in batch]), strict=True):
                found[index] = value
            start += len(batch)
        return found

    def _whole(self, request: Request) -> tuple[int, ...]:
        return (*request.context, *request.continuation)[-(self.max_length + 1) :]

    @torch.no_grad()
    def _batch(self, requests: Sequence[Request]) -> list[float]:
        wholes = [self._whole(request) for request in requests]
        width = max(len(whole) for whole in wholes) - 1
        # Padding on the right: a causal model never looks there.
        ids = torch.zeros(len(wholes), width, dtype=torch.long, device=self.model.device)
        for row, whole in enumerate(wholes):
            ids[row, : len(whole) - 1] = torch.tensor(whole[:-1], device=ids.device)
        logits = self.model(ids, use_cache=False).logits
        values = []
        for row, (request, whole) in enumerate(zip(requests, wholes, strict=True)):
            count = min(len(request.continuation), len(whole) - 1)
            wanted = torch.tensor(whole[-count:], device=ids.device)
            there = logits[row, len(whole) - 1 - count : len(whole) - 1].float()
            values.append(float(there.log_softmax(-1).gather(1, wanted[:, None]).double().sum()))
        return values

    @torch.no_grad()
    def stream(self, tokens: Any, eod: int, seq_length: int, most: int | None = None) -> tuple[float, int]:
        """Summed loss and number of targets of a stream in windows, as a run's own validation counts them.

        Args:
            tokens: a corpus's stream or :class:`Tokens`.
            eod: the end-of-document id.
            seq_length: targets per window.
            most: windows at most, spread evenly; None takes all.
        """
        view = WindowView(tokens, seq_length, eod)
        count = view.samples if most is None else min(most, view.samples)
        picked = [i * view.samples // count for i in range(count)]
        size = max(1, self.batch_tokens // seq_length)
        nats, targets = 0.0, 0
        for start in range(0, count, size):
            samples = [view.sample(i) for i in picked[start : start + size]]
            stacked = {
                key: torch.from_numpy(np.stack([s[key] for s in samples])).to(self.model.device)
                for key in ("tokens", "labels", "loss_mask")
            }
            logits = self.model(stacked["tokens"], use_cache=False).logits.float()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), stacked["labels"].flatten(), reduction="none"
            )
            mask = stacked["loss_mask"].flatten()
            nats += float((losses * mask).double().sum())
            targets += int(mask.sum())
        return nats, targets


def pair(tokenizer: Tokenizer, context: str, continuation: str, bos: Sequence[int] = ()) -> Request:
    """Tokens of a pair as lm-evaluation-harness cuts them: the whole is encoded, the context's share is taken off.

    Spaces at the end of the context go to the continuation. An empty context is the end-of-document id.

    Args:
        bos: ids before the context.
    """
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, given = tokenizer.encode_batch([context + continuation, context])
    before = (*bos, *given)
    return Request(before or (tokenizer.eod,), tuple(whole[len(given) :]))


def whole_text(
    documents: Sequence[Sequence[int]], eod: int, length: int, bos: Sequence[int] = ()
) -> list[Request]:
    """Windows that score every token of every document once, and the end of each; no document sees another.

    Args:
        documents: ids of each.
        eod: the end-of-document id. It stands before a document where there is no ``bos``, as in a stream.
        length: targets of a window at most. A later window of a document sees ``bos`` and the token before it.
        bos: ids that a text begins with; they are never scored.
    """
    requests = []
    for document in documents:
        ids = (*document, eod)
        for start in range(0, len(ids), length):
            before = (*bos, *ids[start - 1 : start]) if start else tuple(bos)
            requests.append(Request(before or (eod,), ids[start : start + length]))
    return requests
