"""``data verify``: find every flipped bit of a corpus."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_moo.data.corpus import Corpus, Part, check_part, read_record
from megatron_moo.data.indexed import bin_path, checksums, idx_path, open_indexed
from megatron_moo.errors import MooError


def verify_corpus(path: Path) -> list[str]:
    """Read everything; one line per damaged file (with its offset), empty when all is well.

    Checked are build.json (its digest and its spelling), the checksum files, every .bin and .idx (CRC-32 per
    64 KiB, which
    gives the place, and SHA-256 of the whole), and the tokenizer's files.
    """
    try:
        corpus = Corpus(path, read_record(path))
    except MooError as error:
        return [str(error)]
    damages = []
    for entry in corpus.entries.values():
        for part in entry.parts:
            damages.extend(_part_damage(path, part))
    for name, expected in corpus.record["files"].items():
        file = path / name
        if not file.is_file():
            damages.append(f"{file}: is missing")
        elif hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            damages.append(f"{file}: is not the file that was built (SHA-256), offset 0 on")
    return damages


def _part_damage(root: Path, part: Part) -> list[str]:
    try:
        check_part(root, part, full=True)
        open_indexed(root / part.prefix)
    except MooError as error:
        return [str(error)]
    prefix = root / part.prefix
    return [
        f"{file}: SHA-256 differs from the build's"
        for file, expected in ((bin_path(prefix), part.bin), (idx_path(prefix), part.idx))
        if checksums(file)[0] != expected.sha256
    ]
