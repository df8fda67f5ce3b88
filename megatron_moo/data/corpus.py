"""An opened corpus: token streams per language and split, checked against the checksums of the build."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_moo.data.indexed import CHUNK, IndexedFile, bin_path, compare_checksums, idx_path, open_indexed
from megatron_moo.data.tokenizers import Tokenizer, make_tokenizer
from megatron_moo.errors import MooError

BUILD_FILE = "build.json"
FORMAT = 1
FULL_CHECK_BYTES = 2 * 2**30
_REBUILD = "run `megatron-moo data build` again"


@dataclass(frozen=True)
class FileSum:
    """Size and SHA-256 of one file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """One .bin/.idx pair. ``prefix`` is relative to the corpus, or absolute when the user's own files are
    used in place."""

    prefix: str
    bin: FileSum
    idx: FileSum
    crc: str
    crc_sha256: str


@dataclass(frozen=True)
class Entry:
    """One language and split: its parts and what was counted while building (bytes and characters of
    text)."""

    tag: str
    split: str
    parts: tuple[Part, ...]
    tokens: int
    documents: int
    bytes: int
    characters: int
    unknown: int
    max_token: int
    skipped: tuple[str, ...] = ()
    skipped_count: int = 0
    empty: int = 0
    sft: Mapping[str, int] = field(default_factory=dict)


class Stream:
    """The tokens of one language and split, documents end to end, each closed by the end-of-document id."""

    def __init__(self, root: Path, entry: Entry) -> None:
        self.entry, self.bytes, self.documents = entry, entry.bytes, entry.documents
        self._readers = [_PartReader(root, part) for part in entry.parts]
        self._starts = np.cumsum([0, *(len(r.file.tokens) for r in self._readers)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def files(self) -> list[IndexedFile]:
        """The opened pairs, in order."""
        return [reader.file for reader in self._readers]

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int64.

        Raises:
            IndexError: outside the stream.
            MooError: the bytes on disk are not those that were built.
        """
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"[{start}, {start + count}) is outside a stream of {len(self)} tokens")
        pieces = []
        index = int(np.searchsorted(self._starts, start, side="right")) - 1
        while count:
            offset = start - int(self._starts[index])
            take = min(count, len(self._readers[index].file.tokens) - offset)
            pieces.append(self._readers[index].read(offset, take))
            start, count, index = start + take, count - take, index + 1
        return np.concatenate(pieces) if pieces else np.zeros(0, np.int64)


class _PartReader:
    """Reads one pair and checks every 64 KiB of its .bin against the build's CRC when it is first touched."""

    def __init__(self, root: Path, part: Part) -> None:
        self.file = open_indexed(root / part.prefix)
        self._path = bin_path(root / part.prefix)
        self._sums = load_sums(root, part)[0]
        self._checked = np.zeros(len(self._sums), bool)
        self._bytes = self.file.tokens.view(np.uint8)

    def read(self, start: int, count: int) -> np.ndarray:
        width = self.file.tokens.itemsize
        for chunk in range(start * width // CHUNK, -(-(start + count) * width // CHUNK)):
            if not self._checked[chunk]:
                self._check(chunk)
        return np.asarray(self.file.tokens[start : start + count], dtype=np.int64)

    def _check(self, chunk: int) -> None:
        data = self._bytes[chunk * CHUNK : (chunk + 1) * CHUNK]
        if zlib.crc32(data) != int(self._sums[chunk]):
            end = chunk * CHUNK + len(data)
            raise MooError(f"damaged between offsets {chunk * CHUNK} and {end}", str(self._path), _REBUILD)
        self._checked[chunk] = True


class Corpus:
    """A finished build.

    Attributes:
        path: its folder.
        vocab_size, eod: of its tokenizer.
        tokenizer_name, tokenizer_hash: which tokenizer made the tokens.
        fingerprint: SHA-256 over the tokenizer and every token file: what a model sees of it.
    """

    def __init__(self, path: Path, record: Mapping[str, Any]) -> None:
        self.path = path
        self.record = record
        tokenizer = record["tokenizer"]
        self.vocab_size: int = tokenizer["vocab_size"]
        self.eod: int = tokenizer["eod"]
        self.tokenizer_name: str = tokenizer["name"]
        self.tokenizer_hash: str = tokenizer["hash"]
        self.fingerprint: str = record["fingerprint"]
        self.sft: Mapping[str, Any] | None = record.get("sft")
        self.entries: dict[tuple[str, str], Entry] = {}
        for item in record["entries"]:
            entry = entry_from_json(item)
            self.entries[entry.tag, entry.split] = entry
        self._streams: dict[tuple[str, str], Stream] = {}

    def tags(self, split: str) -> list[str]:
        """Languages that have this split, in the manifest's order (seen, then unseen)."""
        return [tag for tag, name in self.entries if name == split]

    def entry(self, tag: str, split: str) -> Entry:
        """Counts of a language and split; MooError when the corpus has none."""
        if (tag, split) not in self.entries:
            known = ", ".join(self.tags(split)) or "none"
            raise MooError(
                f"no {split} data for language {tag!r}",
                str(self.path),
                f"languages with {split} data: {known}",
            )
        return self.entries[tag, split]

    def tokens(self, tag: str, split: str) -> int:
        """Tokens, end-of-document ids included."""
        return self.entry(tag, split).tokens

    def bytes(self, tag: str, split: str) -> int:
        """UTF-8 bytes of the text (end-of-document ids have none)."""
        return self.entry(tag, split).bytes

    def documents(self, tag: str, split: str) -> int:
        """Number of documents."""
        return self.entry(tag, split).documents

    def largest_token(self) -> int:
        """The largest id that occurs; reads every token, which takes a while."""
        files = [file for tag, split in self.entries for file in self.stream(tag, split).files]
        return max((int(file.tokens.max()) for file in files if len(file.tokens)), default=0)

    def stream(self, tag: str, split: str) -> Stream:
        """The token stream of a language and split (opened once)."""
        key = (tag, split)
        if key not in self._streams:
            self._streams[key] = Stream(self.path, self.entry(tag, split))
        return self._streams[key]

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made this corpus, from the copy inside it."""
        found = make_tokenizer(self.record["tokenizer"]["spec"], self.path / "tokenizer")
        self.require_tokenizer(found)
        return found

    def require_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse a tokenizer that is not the one that made this corpus."""
        if tokenizer.hash != self.tokenizer_hash:
            what = (
                f"tokenizer {tokenizer.name} ({tokenizer.hash[:12]}) is not the corpus's "
                f"{self.tokenizer_name} ({self.tokenizer_hash[:12]})"
            )
            raise MooError(
                what, str(self.path), "build the corpus with this tokenizer, or use the corpus's own"
            )


def open_corpus(path: str | Path, verify: str = "auto") -> Corpus:
    """Open a finished build.

    Args:
        path: the folder that ``build_corpus`` wrote.
        verify: ``full`` reads every byte against its checksum; ``lazy`` checks the index files and sizes now
            and each 64 KiB
            of tokens when it is first read; ``auto`` is full up to 2 GiB and lazy above. Never is a damaged
            token served.

    Raises:
        MooError: no build, an unfinished or damaged one, with file and offset.
    """
    root = Path(path)
    corpus = Corpus(root, read_record(root))
    total = sum(part.bin.size for entry in corpus.entries.values() for part in entry.parts)
    full = verify == "full" or (verify == "auto" and total <= FULL_CHECK_BYTES)
    for entry in corpus.entries.values():
        for part in entry.parts:
            check_part(root, part, full)
    return corpus


def check_part(root: Path, part: Part, full: bool) -> None:
    """Check one pair against the build; ``full`` reads the .bin too. MooError names file and offset."""
    bin_sums, idx_sums = load_sums(root, part)
    prefix = root / part.prefix
    for file, expected in ((idx_path(prefix), part.idx), (bin_path(prefix), part.bin)):
        if not file.is_file():
            raise MooError("is missing", str(file), _REBUILD)
        actual = file.stat().st_size
        if actual != expected.size:
            offset = min(actual, expected.size)
            raise MooError(
                f"{actual} bytes where {expected.size} were built, offset {offset}", str(file), _REBUILD
            )
    compare_checksums(idx_path(prefix), part.idx.size, idx_sums)
    if full:
        compare_checksums(bin_path(prefix), part.bin.size, bin_sums)


def load_sums(root: Path, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """CRC-32 of each 64 KiB of the .bin and of the .idx."""
    file = root / part.crc
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MooError("is missing", str(file), _REBUILD) from error
    if hashlib.sha256(data).hexdigest() != part.crc_sha256:
        raise MooError("the checksum file itself is damaged (offset 0 on)", str(file), _REBUILD)
    sums = np.frombuffer(data, "<u4")
    return np.split(sums, [-(-part.bin.size // CHUNK)])  # type: ignore[return-value]


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one spelling of a build record; ``digest`` is the SHA-256 of the record without it."""
    body = {key: value for key, value in record.items() if key != "digest"}
    digest = hashlib.sha256(_dump(body)).hexdigest()
    return _dump({**body, "digest": digest})


def _dump(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_record(root: Path) -> dict[str, Any]:
    """Read build.json; any changed byte in it is found, because there is one spelling only."""
    file = root / BUILD_FILE
    try:
        data = file.read_bytes()
    except OSError as error:
        raise MooError("no finished corpus here", str(root), "run `megatron-moo data build` first") from error
    try:
        record = json.loads(data)
        expected = canonical(record)
    except (ValueError, AttributeError, RecursionError) as error:
        offset = getattr(error, "pos", getattr(error, "start", 0))
        raise MooError(f"is damaged ({str(error)[:100]}), offset {offset}", str(file), _REBUILD) from error
    if data != expected:
        at = next(
            (i for i, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b),
            min(len(data), len(expected)),
        )
        raise MooError(f"is damaged or was edited (its digest does not fit; first difference at offset {at})",
                       str(file), _REBUILD)  # fmt: skip
    if record.get("format") != FORMAT:
        raise MooError(f"format {record.get('format')}, this version reads {FORMAT}", str(file), _REBUILD)
    return record


def entry_from_json(item: Mapping[str, Any]) -> Entry:
    """An Entry from its JSON form (``dataclasses.asdict``)."""
    parts = tuple(
        Part(p["prefix"], FileSum(**p["bin"]), FileSum(**p["idx"]), p["crc"], p["crc_sha256"])
        for p in item["parts"]
    )
    rest = {key: value for key, value in item.items() if key not in ("parts", "skipped")}
    return Entry(parts=parts, skipped=tuple(item.get("skipped", ())), **rest)
