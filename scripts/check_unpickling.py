"""Refuse code that lets torch or NumPy run pickles; ruff has no stable rule for it. Part of ``make lint``.

python scripts/check_unpickling.py [FILE ...]     default: all code of ours but the tests
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("megatron_moo", "tools", "scripts", "bench", "examples")
# Keyword of a loader -> the only value it may have, written out. Left out, both have it since torch 2.6, NumPy 1.16.3.
SAFE = {"weights_only": True, "allow_pickle": False}


def our_code() -> list[Path]:
    """Every Python file that is checked by default."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]


def unsafe(text: str) -> Iterator[tuple[int, str]]:
    """Line and reason of every call that may unpickle.

    Args:
        text: source of a file; SyntaxError where it is none.
    """
    for call in ast.walk(ast.parse(text)):
        if not isinstance(call, ast.Call):
            continue
        for word in call.keywords:
            safe = SAFE.get(word.arg or "")
            if safe is not None and getattr(word.value, "value", None) is not safe:
                yield word.value.lineno, f"{word.arg} is not {safe}: a file could run code"
        if ast.unparse(call.func) in ("np.load", "numpy.load") and len(call.args) > 2:
            yield call.lineno, "allow_pickle without its name"


def main(paths: list[Path]) -> int:
    """Tell what is unsafe on stderr; 1 if anything is."""
    found = [
        f"{path}:{line}: {why}"
        for path in paths
        for line, why in sorted(unsafe(path.read_text(encoding="utf-8")))
    ]
    sys.stderr.writelines(line + "\n" for line in found)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main([Path(word) for word in sys.argv[1:]] or our_code()))
