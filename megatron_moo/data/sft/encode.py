"""Conversations to tokens with a loss mask.

On disk a conversation is one document of several sequences, each with mode 1 where the loss counts and 0
elsewhere:
Megatron's own "multimodal" IndexedDataset, so the mask needs no second file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.data.encode import Encoded
from megatron_moo.data.manifest import Reading
from megatron_moo.data.records import Fault, rows
from megatron_moo.data.sft.messages import Message, drop_oldest_turn, parse_messages
from megatron_moo.data.sft.template import ChatTemplate, ConversationFault, load_template
from megatron_moo.data.sources import Block
from megatron_moo.data.tokenizers import ByteTokenizer, HFTokenizer, SentencePieceTokenizer, Tokenizer
from megatron_moo.errors import MooError

Masked = tuple[np.ndarray, np.ndarray]


def encode_conversations(
    block: Block, reading: Reading, tokenizer: Tokenizer, options: Mapping[str, Any]
) -> Encoded:
    """Parse, render and tokenise one block of conversations.

    Args:
        block, reading: where the records are.
        tokenizer: byte, SentencePiece or HF.
        options: template, system, max_length, truncation, base (folder of template files).

    A record that cannot be used is a Fault; what truncation did is counted in ``Encoded.sft``. ``bytes`` and
    ``characters`` are of the text that counts in the loss.
    """
    template = _template(options["template"], options["base"], tokenizer)
    close = options["template"] != "tokenizer"
    kept: list[Masked] = []
    faults: list[Fault] = []
    counts: Counter[str] = Counter()
    text_bytes = characters = 0
    for item in rows(block, reading):
        if isinstance(item, Fault):
            faults.append(item)
            continue
        line, offset, record = item
        messages = parse_messages(record, options["system"])
        reason = messages if isinstance(messages, str) else _injection(messages, tokenizer)
        if isinstance(messages, str) or reason is not None:
            faults.append(Fault(str(block.path), line, offset, str(reason)))
            continue
        try:
            result = _fit(messages, template, tokenizer, close, options, counts)
        except ConversationFault as error:
            result = error.what
        except MooError as error:
            raise MooError(error.what, f"{error.where}, on {block.path}:{line}", error.todo) from error
        if isinstance(result, str):
            faults.append(Fault(str(block.path), line, offset, result))
        elif result is not None:
            kept.append(result)
            text = _loss_text(result, tokenizer)
            text_bytes += len(text.encode("utf-8", "replace"))
            characters += len(text)
            counts["loss_tokens"] += int(result[1][1:].sum())
            counts["loss_text_tokens"] += int((result[1][1:] & (result[0][1:] != tokenizer.eod)).sum())
    encoded = _to_sequences(kept)
    encoded.faults, encoded.bytes, encoded.characters = faults, text_bytes, characters
    encoded.unknown = int((encoded.tokens == tokenizer.unknown).sum()) if tokenizer.unknown is not None else 0
    counts["conversations"] = len(kept)
    encoded.sft = dict(counts)
    return encoded


def mask_conversation(
    messages: Sequence[Message], template: ChatTemplate, tokenizer: Tokenizer, close: bool = True
) -> Masked:
    """Token ids (int32) and mask (bool: the assistant wrote it) of a conversation.

    ``close`` adds the end-of-document id, counted in the loss when the assistant speaks last.
    """
    text, spans = template.text_and_spans(messages)
    ids, starts, ends = tokenise_with_offsets(text, tokenizer)
    mask = np.zeros(len(ids), bool)
    for start, end in spans:
        # As transformers does: from the token that holds the first character to the one that holds the last.
        mask |= (ends > start) & (starts < end)
    if close:
        ids = np.append(ids, tokenizer.eod)
        mask = np.append(mask, messages[-1]["role"] == "assistant")
    return ids.astype(np.int32), mask


def tokenise_with_offsets(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and, for each, its first character and the one after its last (special tokens of the template are
    one id)."""
    if isinstance(tokenizer, ByteTokenizer):
        widths = np.fromiter((len(character.encode()) for character in text), np.int64, len(text))
        starts = np.repeat(np.arange(len(text)), widths)
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64), starts, starts + 1
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.encode_with_offsets(text)
    if isinstance(tokenizer, HFTokenizer):
        return tokenizer.encode_with_offsets(text)
    raise MooError(
        f"no offsets from tokenizer {tokenizer.name}", "sft", "use byte, sentencepiece or a fast HF tokenizer"
    )


@lru_cache(maxsize=64)
def _template(name: str, base: str, tokenizer: Tokenizer) -> ChatTemplate:
    return load_template(name, Path(base), getattr(tokenizer, "hf", None))


def _injection(messages: Sequence[Message], tokenizer: Tokenizer) -> str | None:
    """A turn that spells a special token would end itself and move the mask."""
    special = getattr(getattr(tokenizer, "hf", None), "all_special_tokens", [])
    for message in messages:
        for piece in special:
            if piece in message["content"]:
                return f"a message spells the special token {piece!r}"
    return None


def _fit(
    messages: list[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    close: bool,
    options: Mapping[str, Any],
    counts: Counter[str],
) -> Masked | str | None:
    """Apply the truncation policy: the masked tokens, a reason (policy ``error``), or None when dropped."""
    limit, policy = options["max_length"], options["truncation"]
    ids, mask = mask_conversation(messages, template, tokenizer, close)
    if policy == "turns" and len(ids) > limit:
        while len(ids) > limit and (shorter := drop_oldest_turn(messages)) is not None:
            messages = shorter
            ids, mask = mask_conversation(messages, template, tokenizer, close)
        counts["turns_dropped"] += 1
    if len(ids) > limit:
        if policy == "error":
            return f"{len(ids)} tokens, more than sft.max_length = {limit}"
        if policy == "drop":
            counts["dropped"] += 1
            return None
        ids, mask = ids[:limit], mask[:limit]
        counts["cut"] += 1
    if not mask[1:].any():
        counts["dropped"] += 1
        return None
    return ids, mask


def _loss_text(masked: Masked, tokenizer: Tokenizer) -> str:
    """The text that counts in the loss: bits per byte divide by its bytes, not by those of the prompts."""
    ids, mask = masked
    counted = ids[1:][mask[1:] & (ids[1:] != tokenizer.eod)]
    return tokenizer.decode(counted.tolist())


def _to_sequences(kept: list[Masked]) -> Encoded:
    tokens, lengths, counts, modes = [], [], [], []
    for ids, mask in kept:
        bounds = np.concatenate([[0], np.flatnonzero(np.diff(mask)) + 1, [len(mask)]])
        tokens.append(ids)
        lengths.append(np.diff(bounds))
        modes.append(mask[bounds[:-1]])
        counts.append(len(bounds) - 1)
    if not kept:
        none = np.zeros(0, np.int32)
        return Encoded(none, none, none, none.astype(np.int8))
    return Encoded(
        np.concatenate(tokens),
        np.concatenate(lengths).astype(np.int32),
        np.array(counts, np.int32),
        np.concatenate(modes).astype(np.int8),
    )
