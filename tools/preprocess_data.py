"""Tokenise JSONL to Megatron's .bin/.idx, with Megatron-LM's own flags: a thin door to
``megatron_moo.data.preprocess``.

python tools/preprocess_data.py --input en.jsonl --output-prefix out/en --tokenizer-type HuggingFaceTokenizer
\
    --tokenizer-model DIR --append-eod --workers 8
"""

from __future__ import annotations

import sys

from megatron_moo.data.preprocess import preprocess
from megatron_moo.errors import MooError


def main() -> int:
    """Exit status 0 on success, 2 with one line on stderr on bad input."""
    try:
        for prefix in preprocess():
            print(f"{prefix}.bin\n{prefix}.idx")
    except MooError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
