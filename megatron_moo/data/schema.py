"""The JSON schema of ``languages.yaml``.

It stands in Python rather than in a .json file so that the package needs no data files.
"""

from __future__ import annotations

from typing import Any

_SOURCES = {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}}
_POSITIVE = {"type": "number", "exclusiveMinimum": 0}

READING: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "text_key": {"type": "string", "minLength": 1},
        "documents": {"enum": ["paragraph", "line", "file"]},
        "skip_budget": {"type": "integer", "minimum": 0},
        "max_line_bytes": {"type": "integer", "minimum": 64},
        "split": {"type": "string", "minLength": 1},
    },
}

_TOKENIZER: dict[str, Any] = {
    "oneOf": [
        {"enum": ["byte"]},
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["type"],
            "properties": {"type": {"const": "byte"}},
        },
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "model"],
            "properties": {"type": {"const": "sentencepiece"}, "model": {"type": "string"}},
        },
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "vocab_size", "train"],
            "properties": {
                "type": {"const": "sentencepiece"},
                "train": {"const": True},
                "vocab_size": {"type": "integer", "minimum": 300},
                "model_type": {"enum": ["bpe", "unigram"]},
                "character_coverage": {"type": "number", "minimum": 0.9, "maximum": 1},
                "train_bytes": {"type": "integer", "minimum": 1000},
            },
        },
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["type", "path"],
            "properties": {
                "type": {"const": "hf"},
                "path": {"type": "string"},
                "eod": {"type": "string", "minLength": 1},
            },
        },
    ]
}

_SAMPLING: dict[str, Any] = {
    "oneOf": [
        {"enum": ["uniform", "proportional", "temperature", "unimax", "fixed"]},
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["law"],
            "properties": {
                "law": {"enum": ["uniform", "proportional", "temperature", "unimax", "fixed"]},
                "temperature": _POSITIVE,
                "epochs": _POSITIVE,
                "budget": {"type": "integer", "minimum": 1},
            },
        },
    ]
}

SFT: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["max_length"],
    "properties": {
        "template": {"type": "string", "minLength": 1},
        "system": {"type": "string"},
        "max_length": {"type": "integer", "minimum": 8},
        "truncation": {"enum": ["drop", "right", "turns", "error"]},
        "pack": {"type": "boolean"},
    },
}

_LANGUAGE: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["train"],
    "properties": {
        "train": _SOURCES,
        "valid": _SOURCES,
        "objective": {"type": "string", "minLength": 1},
        "weight": _POSITIVE,
        "preference": _POSITIVE,
        "reading": READING,
        "template": {"type": "string", "minLength": 1},
        "system": {"type": "string"},
    },
}

_UNSEEN: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["valid"],
    "properties": {
        "valid": _SOURCES,
        "reading": READING,
        "template": {"type": "string", "minLength": 1},
        "system": {"type": "string"},
    },
}

MANIFEST: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["tokenizer", "languages"],
    "properties": {
        "tokenizer": _TOKENIZER,
        "sampling": _SAMPLING,
        "reading": READING,
        "sft": SFT,
        "languages": {"type": "object", "minProperties": 1, "additionalProperties": _LANGUAGE},
        "unseen": {"type": "object", "additionalProperties": _UNSEEN},
    },
}
