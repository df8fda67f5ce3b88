"""Tokenizers behind one small interface: bytes, SentencePiece, Hugging Face."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from megatron_moo.errors import MooError


class Tokenizer(Protocol):
    """What the data room needs from a tokenizer.

    Attributes:
        name: a readable name.
        hash: SHA-256 of what decides its output; two tokenizers with one hash are the same.
        vocab_size: ids are in ``[0, vocab_size)``, ``eod`` included.
        eod: the id that ends a document.
        unknown: the id of an unknown piece, or None when there is none (bytes, byte fallback).
    """

    name: str
    hash: str
    vocab_size: int
    eod: int
    unknown: int | None

    def __hash__(self) -> int: ...

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def save(self, folder: Path) -> dict[str, Any]:
        """Copy what is needed into ``folder``; returns the spec that loads it from there (paths relative)."""
        ...


class ByteTokenizer:
    """UTF-8 bytes 0..255 and one end-of-document id, 256."""

    name = "byte"
    hash = hashlib.sha256(b"megatron_moo byte tokenizer: utf-8 bytes, eod 256").hexdigest()
    vocab_size = 257
    eod = 256
    unknown: int | None = None

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode("utf-8")) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode("utf-8", errors="replace")

    def save(self, folder: Path) -> dict[str, Any]:
        return {"type": "byte"}


class SentencePieceTokenizer:
    """A SentencePiece model; the end of a document is its ``</s>``."""

    def __init__(self, model: str | Path) -> None:
        import sentencepiece

        self._path = Path(model)
        data = _read(self._path)
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=data)
        except RuntimeError as error:
            raise MooError("is no SentencePiece model", str(model), "train or choose another") from error
        self.name = f"sentencepiece:{self._path.name}"
        self.hash = hashlib.sha256(data).hexdigest()
        self.vocab_size = self._processor.vocab_size()
        self.eod = self._processor.eos_id()
        if self.eod < 0:
            raise MooError("the SentencePiece model has no </s>", str(model), "train one with an eos_id")
        pieces = range(min(self.vocab_size, 600))
        has_bytes = any(self._processor.is_byte(i) for i in pieces)
        self.unknown = None if has_bytes else self._processor.unk_id()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts), num_threads=1)

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, and per id its first character and the one after its last."""
        found: Any = self._processor.encode(text, return_type="offset_mapping")
        offsets = np.array(found["offsets"], np.int64).reshape(-1, 2)
        # The bytes of one unknown character share it: all but the last report an empty span at its start.
        return np.array(found["ids"], np.int64), offsets[:, 0], np.maximum(offsets[:, 1], offsets[:, 0] + 1)

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(i) for i in ids])

    def save(self, folder: Path) -> dict[str, Any]:
        target = folder / "sentencepiece.model"
        if target.resolve() != self._path.resolve():
            shutil.copyfile(self._path, target)
        return {"type": "sentencepiece", "model": target.name}


class HFTokenizer:
    """A tokenizer folder in Hugging Face's format (``tokenizer.json`` or what AutoTokenizer reads).

    Special tokens written in a text are text: training data must not be able to end its own document.

    Args:
        path: the folder.
        eod: the piece that ends a document; None: the tokenizer's eos.
        special: whether ``encode_batch`` adds what the tokenizer puts around every text (Llama's <s>).
    """

    def __init__(self, path: str | Path, eod: str | None = None, special: bool = False) -> None:
        from transformers import AutoTokenizer

        self._path = Path(path)
        try:
            self.hf = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            first = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise MooError(
                f"no Hugging Face tokenizer ({first})", str(path), "point to its folder"
            ) from error
        self.name = f"hf:{self._path.name}"
        self._eod_piece, self._special = eod, special
        # Ids may have gaps: the largest one decides, not how many there are.
        self.vocab_size = max(len(self.hf), max(self.hf.get_vocab().values(), default=-1) + 1)
        self.eod = self._find_eod(eod)
        unknown = self.hf.unk_token_id
        self.unknown = unknown if unknown != self.eod else None
        self.hash = self._hash()

    def _find_eod(self, piece: str | None) -> int:
        if piece is not None:
            vocabulary = self.hf.get_vocab()
            if piece not in vocabulary:
                raise MooError(f"no piece {piece!r} in the tokenizer", str(self._path), "choose another eod")
            return int(vocabulary[piece])
        if self.hf.eos_token_id is None:
            raise MooError(
                "the tokenizer has no eos token", str(self._path), "give tokenizer.eod in the manifest"
            )
        return int(self.hf.eos_token_id)

    def _hash(self) -> str:
        backend = getattr(self.hf, "backend_tokenizer", None)
        rules = backend.to_str() if backend is not None else json.dumps(sorted(self.hf.get_vocab().items()))
        return hashlib.sha256(f"{self.eod}\n{rules}".encode()).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None:
            return [self.hf.encode(text, add_special_tokens=self._special) for text in texts]
        backend.encode_special_tokens = True
        found = backend.encode_batch_fast(list(texts), add_special_tokens=self._special)
        return [encoding.ids for encoding in found]

    @property
    def special(self) -> bool:
        """Whether ``encode_batch`` adds what the tokenizer puts around every text."""
        return self._special

    def plain(self) -> HFTokenizer:
        """The same tokenizer, adding nothing."""
        found = copy.copy(self)
        found._special = False
        return found

    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids that the tokenizer puts before and behind a text by itself, as ``encode`` of transformers does."""
        bare = self.hf.encode("a", add_special_tokens=False)
        full = self.hf.encode("a", add_special_tokens=True)
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return tuple(full[:start]), tuple(full[start + len(bare) :])
        return (), ()

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids, and per id its first character and the one after its last; special tokens in the text are one
        id."""
        if not self.hf.is_fast:
            raise MooError(
                "a slow tokenizer gives no character offsets", str(self._path), "use one with tokenizer.json"
            )
        self.hf.backend_tokenizer.encode_special_tokens = False
        found = self.hf(text, add_special_tokens=False, return_offsets_mapping=True)
        offsets = np.array(found["offset_mapping"], np.int64).reshape(-1, 2)
        return np.array(found["input_ids"], np.int64), offsets[:, 0], offsets[:, 1]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.hf.decode([int(i) for i in ids], clean_up_tokenization_spaces=False))

    def save(self, folder: Path) -> dict[str, Any]:
        target = folder / "hf"
        self.hf.save_pretrained(str(target))
        spec: dict[str, Any] = {"type": "hf", "path": target.name}
        spec |= {"eod": self._eod_piece} if self._eod_piece else {}
        return spec | ({"special": True} if self._special else {})


def make_tokenizer(spec: Mapping[str, Any], base: Path | None = None) -> Tokenizer:
    """Make the tokenizer of a spec (manifest or corpus); relative paths are under ``base``.

    Raises:
        MooError: an unknown type, or files that are missing or not a tokenizer.
    """
    kind = spec["type"]
    if kind == "byte":
        return ByteTokenizer()
    if kind == "sentencepiece" and "model" in spec:
        return SentencePieceTokenizer((base or Path()) / spec["model"])
    if kind == "hf":
        return HFTokenizer((base or Path()) / spec["path"], spec.get("eod"), bool(spec.get("special")))
    raise MooError(f"no tokenizer of {dict(spec)}", todo="use byte, sentencepiece or hf")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MooError(
            f"cannot be read ({error.strerror})", str(path), "check the tokenizer's path"
        ) from error
