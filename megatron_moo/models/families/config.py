"""Reading a Hugging Face ``config.json`` that may have come from anywhere.

A family asks for every key that it knows; what nobody asked for is refused by name, because a key that we do
not know may change what the model computes. Numbers are held within limits here, before anything is
allocated.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_moo.errors import MooError
from megatron_moo.models.files import small_bytes

_MAX_BYTES = 16 << 20
LARGEST = 1 << 24
_LAYERS = 1024

# Keys that say nothing about the function: bookkeeping, generation, training and token numbers.
_BOOKKEEPING = frozenset(
    [
        "architectures",
        "attn_implementation",
        "auto_map",
        "bos_token_id",
        "cache_implementation",
        "chunk_size_feed_forward",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "id2label",
        "initializer_range",
        "is_decoder",
        "is_encoder_decoder",
        "is_llama_config",
        "label2id",
        "max_length",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "router_aux_loss_coef",
        "sep_token_id",
        "task_specific_params",
        "torch_dtype",
        "transformers.js_config",
        "transformers_version",
        "trust_remote_code",
        "unk_token_id",
        "use_cache",
    ]
)


class Config:
    """The mapping of a ``config.json`` with a note of every key that was asked for.

    Args:
        values: the mapping.
        where: its path, for messages.
        ignore: keys that the user vouches for.
    """

    def __init__(
        self, values: dict[str, Any], where: str = "config.json", ignore: Sequence[str] = ()
    ) -> None:
        self.values, self.where = values, where
        self._asked = set(_BOOKKEEPING) | set(ignore)

    @property
    def architecture(self) -> str:
        """The one architecture named.

        Raises:
            MooError: when there is none or several.
        """
        found = self.values.get("architectures")
        if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], str):
            raise MooError(f"architectures is {found!r}, expected a list with one name", self.where)
        return found[0]

    def get(self, key: str, default: Any = None) -> Any:
        """Raw value; a missing key gives ``default``, null gives None."""
        self._asked.add(key)
        return self.values.get(key, default)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
        """A whole number within limits; null counts as missing.

        Raises:
            MooError: naming key and value.
        """
        value = self.get(key, default)
        value = default if value is None else value
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise MooError(f"{key} is {value!r}, expected a whole number from {low} to {high}", self.where)
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number with ``low < value <= high``; null counts as missing.

        Raises:
            MooError: naming key and value.
        """
        value = self.get(key, default)
        return checked_number(key, default if value is None else value, self.where, low, high)

    def layers(self) -> int:
        """Number of layers."""
        return self.integer("num_hidden_layers", high=_LAYERS)

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false.

        Raises:
            MooError: naming key and value.
        """
        value = self.get(key, default)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise MooError(f"{key} is {value!r}, expected true or false", self.where)
        return value

    def fixed(self, key: str, *expected: Any) -> None:
        """Refuse a key whose value would change the function; missing and null are the first expected value.

        Raises:
            MooError: naming key and value.
        """
        value = self.get(key)
        if value is not None and value not in expected:
            wanted = " or ".join(repr(item) for item in expected)
            raise MooError(f"{key} is {value!r}, only {wanted} is supported", self.where)

    def unused(self, *keys: str) -> None:
        """Accept keys that do not change the function of this family."""
        self._asked.update(keys)

    def pattern(self, key: str, sliding: str, full: str, default: list[str]) -> list[str]:
        """A list that says for every layer which of two kinds it is.

        Raises:
            MooError: for another length or another kind.
        """
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, list) or len(value) != self.layers() or not set(value) <= {sliding, full}:
            raise MooError(
                f"{key} is not a list of {self.layers()} times {sliding!r} or {full!r}", self.where
            )
        return value

    def finish(self) -> None:
        """Refuse keys that nobody asked for.

        Raises:
            MooError: naming them.
        """
        # False, null and empty values of unknown keys switch nothing on. Keys that begin with an underscore are
        # notes of the library that wrote the config (`_name_or_path`, `_attn_implementation`, what a converter
        # remembered): no model class of transformers reads its function from one.
        left = sorted(
            key
            for key, value in self.values.items()
            if key not in self._asked and not key.startswith("_") and value not in (None, False, [], {})
        )
        if left:
            told = ", ".join(f"{key} = {_short(self.values[key])}" for key in left[:4])
            raise MooError(
                f"unknown to this family: {told}",
                self.where,
                f"if it does not change what the model computes, pass --ignore-key {left[0]}",
            )


def checked_number(key: str, value: Any, where: str, low: float = 0.0, high: float = 1e12) -> float:
    """``value`` as a finite float with ``low < value <= high``.

    Raises:
        MooError: naming key and value.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MooError(f"{key} is {value!r}, expected a finite number", where)
    if not low < value <= high:
        raise MooError(f"{key} is {value!r}, expected more than {low:g} and at most {high:g}", where)
    return float(value)


def load_config(path: Path, ignore: Sequence[str] = ()) -> Config:
    """Read a ``config.json``.

    Raises:
        MooError: for a file that is missing, a link out of its folder, no plain file, too large, not JSON or not a
            mapping.
    """
    try:
        values = json.loads(small_bytes(path, _MAX_BYTES))
    except (ValueError, RecursionError) as error:
        raise MooError(f"is not JSON ({error})", str(path)) from None
    if not isinstance(values, dict):
        raise MooError("is not a mapping", str(path))
    return Config(values, str(path), ignore)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
