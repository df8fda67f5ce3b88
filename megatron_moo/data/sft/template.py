"""Chat templates: which text a conversation becomes, and which characters of it the assistant wrote.

Where a template marks the assistant's part (``{% generation %}``), the marks decide. Where it has none, the
part is
found by prefix difference: what the conversation up to and with an assistant turn adds to the conversation
before it plus
the generation prompt. A template for which that is not a prefix is refused: a mask of all ones must never
come silently.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_moo.data.sft.messages import Message
from megatron_moo.errors import MooError

NAMED = {
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
}
_OPEN, _CLOSE, _PROBE = "\ue0f0", "\ue0f1", "\ue0f2"
_FAILURES = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError)
_MARK = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")


class ConversationFault(MooError):
    """The template is good, this conversation does not fit it: a record that may be skipped."""


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.
        name: how errors call it.
        special: variables such as bos_token for the template.
    """

    def __init__(self, source: str, name: str, special: dict[str, str] | None = None) -> None:
        from jinja2 import TemplateError

        self.name = name
        self.marked = _MARK.search(source) is not None
        self._special = special or {}
        try:
            self._template = _environment().from_string(_MARK.sub(_sentinel, source))
        except TemplateError as error:
            raise MooError(f"the chat template is not valid Jinja ({error})", name, "repair it") from error

    def render(self, messages: Sequence[Message], prompt: bool = False) -> str:
        """The text of a conversation, marks included; ``prompt`` adds what invites the assistant to speak.

        Raises:
            ConversationFault: the template refuses the conversation (roles that do not alternate, no system turn
            allowed, ...), or fails on it.
        """
        from jinja2 import TemplateError

        # transformers gives every template these two, and templates test them without asking whether they exist.
        given = {"tools": None, "documents": None, **self._special}
        try:
            return str(self._template.render(messages=list(messages), add_generation_prompt=prompt, **given))
        except (*_FAILURES, TemplateError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0][:200]
            what = f"the chat template refuses a conversation: {first}"
            raise ConversationFault(what, self.name) from error

    def text_and_spans(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text and the character spans [start, end) that the assistant wrote.

        Raises:
            ConversationFault: this conversation gives no assistant text, or the template refuses it.
            MooError: the spans cannot be told, or enclose what others wrote.
        """
        for message in messages:
            if any(mark in str(message["content"]) for mark in (_OPEN, _CLOSE, _PROBE)):
                raise ConversationFault(
                    "a message holds a character from U+E0F0 to U+E0F2, which mark the assistant's text here",
                    self.name,
                    "take it out of the data",
                )
        if self.marked:
            self._check_marks(messages)
        text, spans = self._marked(messages) if self.marked else self._by_prefix(messages)
        if not any(end > start for start, end in spans):
            what = "the chat template gives no assistant text"
            raise ConversationFault(what, self.name, "use another template")
        return text, spans

    def _check_marks(self, messages: Sequence[Message]) -> None:
        """Refuse marks that enclose other turns: a mask of all ones must never come silently.

        Each conversation is probed, because a template may do to a long one what it does not to a short one.
        """
        probes = [
            m if m["role"] == "assistant" else {**m, "content": f"{_PROBE}{m['content']}{_PROBE}"}
            for m in messages
        ]
        text, spans = self._marked(probes)
        if any(_PROBE in text[start:end] for start, end in spans):
            raise MooError(
                "the generation marks of the chat template enclose turns that are not the assistant's",
                self.name,
                "put {% generation %} around the assistant's text alone",
            )

    def _marked(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        pieces, spans, length, start = [], [], 0, None
        for piece in re.split(f"([{_OPEN}{_CLOSE}])", self.render(messages)):
            if piece == _OPEN:
                start = length
            elif piece == _CLOSE and start is not None:
                spans.append((start, length))
                start = None
            else:
                pieces.append(piece)
                length += len(piece)
        return "".join(pieces), spans

    def _by_prefix(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        text = self.render(messages)
        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:i], prompt=True)
            after = self.render(messages[: i + 1])
            if not (after.startswith(before) and text.startswith(after)):
                what = (
                    "has no generation marks, and an earlier part of a conversation is no prefix of the whole"
                )
                raise MooError(
                    f"the chat template {what}", self.name, "add {% generation %} marks, or use another"
                )
            spans.append((len(before), len(after)))
        return text, spans


def _sentinel(match: re.Match[str]) -> str:
    left, end, right = match.groups()
    mark = _CLOSE if end else _OPEN
    # An `if` keeps the tag's own white space control on both sides of the mark.
    return f"{{%{left} if true %}}{mark}{{% endif {right}%}}"


@lru_cache(maxsize=1)
def _environment() -> Any:
    """Jinja as chat templates expect it (trimmed blocks, loop controls, raise_exception, plain tojson),
    sandboxed."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    environment.filters["tojson"] = (
        lambda value, ensure_ascii=False, indent=None, separators=None, sort_keys=False: json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )
    )
    return environment


def load_template(name: str, base: Path, hf: Any = None) -> ChatTemplate:
    """A template by name (``chatml``, ``plain``), ``tokenizer`` (the HF tokenizer's own), or a file relative
    to ``base``.

    Raises:
        MooError: no such template, or a tokenizer without one.
    """
    special = {f"{kind}_token": "" for kind in ("bos", "eos", "pad", "unk")}
    if hf is not None:
        special = dict(hf.special_tokens_map)
    if name in NAMED:
        return ChatTemplate(NAMED[name], name, special)
    if name == "tokenizer":
        if hf is None or not isinstance(getattr(hf, "chat_template", None), str):
            todo = f"name one of {', '.join(NAMED)} or a file in sft.template"
            raise MooError("the tokenizer has no chat template", "sft.template", todo)
        return ChatTemplate(hf.chat_template, "the tokenizer's template", special)
    file = base / name
    if not file.is_file():
        todo = f"use tokenizer, {', '.join(NAMED)} or the path of a Jinja file"
        raise MooError(f"no chat template {name!r}", "sft.template", todo)
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MooError(
            f"the chat template cannot be read ({error})", str(file), "save it as UTF-8"
        ) from error
    return ChatTemplate(source, str(file), special)
