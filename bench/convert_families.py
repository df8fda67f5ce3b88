"""Write docs/families.md: every family's logits in Megatron beside those of transformers, at every layout.

    python bench/convert_families.py [--write docs/families.md] [--only llama …]

A tiny random checkpoint of every family (tests/distributed/convert_zoo.py), and the same with its embeddings tied
where they were not and its vocabulary padded where it was not, is imported, loaded by Megatron's own loader on gloo
ranks, and compared in fp32 on the CPU. The exit status is 1 when a difference is above 1e-5.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from megatron_moo.models.families import families
from tests.distributed.convert_logits import compare_logits
from tests.distributed.convert_zoo import LAYOUTS, SIZES, ZOO, Tiny, opposite
from tests.pool import RankPool

LIMIT = 1e-5
ORDER = tuple(
    sorted(LAYOUTS, key=lambda layout: (layout.ranks, layout.name != "one rank", LAYOUTS.index(layout)))
)
HEAD = """# Families

Written by `python bench/convert_families.py --write docs/families.md`: do not edit.

Largest absolute difference between the logits of transformers and those of Megatron after `convert import`, for a
tiny random checkpoint of every family (4 layers, 24 tokens, norm weights and biases random too), in fp32 on the CPU,
loaded by Megatron's own loader at every layout. "Padded": the vocabulary has 100 or 101 tokens and the embedding 128
rows; otherwise both are 128. A dash stands where a layout makes no sense: no experts to cut (EP), and GPT-OSS, whose
attention is Megatron's own and is not cut along the sequence (CP). The bound is 1e-5; the way back is bitwise
(`tests/distributed/test_convert.py`).

| family | for | architectures |
|---|---|---|
"""


def main() -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="file to write; the table is printed otherwise")
    parser.add_argument("--only", nargs="*", help="families")
    args = parser.parse_args()
    tinies = [tiny for tiny in ZOO if not args.only or tiny.family in args.only]
    pool = RankPool()
    try:
        rows = [measure(pool, tiny) for base in tinies for tiny in (base, opposite(base))]
    finally:
        pool.close()
    text = HEAD + "\n".join(about()) + "\n\n" + "\n".join(table(rows)) + "\n"
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    else:
        print(text)
    return 1 if any(gap > LIMIT for _, _, gaps in rows for gap in gaps if gap is not None) else 0


def about() -> list[str]:
    """A line for every family."""
    return [
        f"| `{family.name}` | {family.about} | {', '.join(f'`{name}`' for name in family.architectures)} |"
        for family in families()
    ]


def measure(pool: RankPool, tiny: Tiny) -> tuple[Tiny, float, list[float | None]]:
    """Largest logit, and the largest difference at every layout, of one checkpoint."""
    gaps: list[float | None] = []
    largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for layout in ORDER:
            if not layout.fits(tiny):
                gaps.append(None)
                continue
            found = compare_logits(pool, Path(folder), tiny, layout)
            if not found.padding_is_silent:
                raise SystemExit(f"{tiny.name}, {layout.name}: rows that only pad have a probability")
            largest = found.largest
            gaps.append(found.gap)
    told = " ".join("-" if gap is None else f"{gap:.1e}" for gap in gaps)
    sys.stderr.write(f"{tiny.name}: {told}\n")
    return tiny, largest, gaps


def table(rows: list[tuple[Tiny, float, list[float | None]]]) -> list[str]:
    """The Markdown table."""
    lines = [
        "| checkpoint | embeddings | vocabulary | largest logit | "
        + " | ".join(layout.name for layout in ORDER)
        + " |",
        "|---|---|---|---|" + "---|" * len(ORDER),
    ]
    for tiny, largest, gaps in rows:
        name = tiny.name.partition(":")[0].replace(" tied", "").replace(", padded", "")
        padded = "padded" if tiny.values.get("vocab_size", SIZES["vocab_size"]) % 128 else "whole"
        cells = ["–" if gap is None else f"{gap:.1e}" for gap in gaps]
        told = "tied" if is_tied(tiny) else "untied"
        lines.append(f"| {name} | {told} | {padded} | {largest:.1f} | {' | '.join(cells)} |")
    return lines


def is_tied(tiny: Tiny) -> bool:
    """Whether a checkpoint's embeddings are tied, transformers' default for the family included."""
    return opposite(tiny).values["tie_word_embeddings"] is False


if __name__ == "__main__":
    sys.exit(main())
