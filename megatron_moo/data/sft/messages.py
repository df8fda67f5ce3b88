"""Conversations: from a JSON record to a checked list of messages."""

from __future__ import annotations

from typing import Any

from megatron_moo.data.records import text_fault

Message = dict[str, str]
ROLES = ("system", "user", "assistant", "tool")


def parse_messages(record: Any, system: str | None = None) -> list[Message] | str:
    """The messages of a record with ``messages`` or ``prompt`` and ``completion``; a reason (str) when it is
    unusable.

    Args:
        record: a JSON object.
        system: system prompt put before conversations that have none.
    """
    if not isinstance(record, dict):
        return f"a {type(record).__name__}, not an object"
    raw = _raw(record)
    if isinstance(raw, str):
        return raw
    messages: list[Message] = []
    for number, item in enumerate(raw):
        reason = _message_fault(item)
        if reason is not None:
            return f"message {number}: {reason}"
        messages.append({"role": item["role"], "content": item["content"]})
    if any(message["role"] == "system" for message in messages[1:]):
        return "a system message that is not the first"
    if not any(message["role"] == "assistant" for message in messages):
        return "no assistant turn: nothing to learn from"
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _raw(record: dict[str, Any]) -> list[Any] | str:
    pair = record.get("prompt") is not None and record.get("completion") is not None
    if "messages" in record and not (
        record["messages"] is None and pair
    ):  # tables write null for what is not there
        messages = record["messages"]
        if not isinstance(messages, list) or not messages:
            return "`messages` is not a list with at least one message"
        return messages
    if "prompt" in record and "completion" in record:
        return [
            {"role": "user", "content": record["prompt"]},
            {"role": "assistant", "content": record["completion"]},
        ]
    return "neither `messages` nor `prompt` and `completion`"


def _message_fault(item: Any) -> str | None:
    if not isinstance(item, dict) or "role" not in item or "content" not in item:
        return "not an object with `role` and `content`"
    if item["role"] not in ROLES:
        return f"unknown role {str(item['role'])[:40]!r} (known: {', '.join(ROLES)})"
    return text_fault(item["content"])


def drop_oldest_turn(messages: list[Message]) -> list[Message] | None:
    """Without the oldest exchange (up to and with its assistant turn), the system prompt kept; None when
    only one is left."""
    start = 1 if messages[0]["role"] == "system" else 0
    ends = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if len(ends) < 2 or ends[0] + 1 >= len(messages):
        return None
    return messages[:start] + messages[ends[0] + 1 :]
