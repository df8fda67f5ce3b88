"""Reading in bounded memory: archives, tables, long records, and progress that arrives."""

from __future__ import annotations

import gzip
import json
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
import zstandard

from megatron_moo.data import Corpus, build_corpus, load_manifest
from megatron_moo.data.manifest import Reading
from megatron_moo.data.records import texts
from megatron_moo.data.sources import read_blocks
from megatron_moo.errors import MooError


def _build(folder: Path, source: str, progress: Any = None, sft: Any = None, **reading: object) -> Corpus:
    path = folder / "languages.yaml"
    spec = {"tokenizer": "byte", "reading": reading, "languages": {"en": {"train": [source]}}}
    path.write_text(yaml.safe_dump(spec | ({"sft": sft} if sft else {})))
    return build_corpus(load_manifest(path), folder / "corpus", workers=1, progress=progress)


def _saved(folder: Path, batches: list[pa.RecordBatch]) -> Path:
    """A folder as `datasets` saves it."""
    folder.mkdir()
    with (
        pa.OSFile(str(folder / "d.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, batches[0].schema) as out,
    ):
        for batch in batches:
            out.write_batch(batch)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "d.arrow"}]}))
    return folder


def _bad_text(*values: bytes) -> pa.Array:
    """Strings that nobody checked, as some writers leave them."""
    whole = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), whole.buffers())


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_bad_utf8_in_a_table_is_a_bad_record(tmp_path: Path, kind: str) -> None:
    table = pa.table({"text": _bad_text(b"good one", b"caf\xe9", b"good too")})
    if kind == "parquet":
        pq.write_table(table, tmp_path / "en.parquet")
        name = "en.parquet"
    else:
        name = f"{_saved(tmp_path / 'en', table.to_batches()).name}/d.arrow"
    with pytest.raises(MooError, match=rf"{name}:2: broken UTF-8, byte 0xe9, offset 3"):
        _build(tmp_path, name)
    entry = _build(tmp_path, name, skip_budget=1).entry("en", "train")
    assert (entry.documents, entry.skipped_count) == (2, 1)


def test_bad_utf8_in_a_table_of_conversations(tmp_path: Path) -> None:
    columns = {"prompt": _bad_text(b"a", b"\xff", b"c"), "completion": pa.array(["x", "y", "z"])}
    pq.write_table(pa.table({**columns, "other": [1, 2, 3]}), tmp_path / "en.parquet")
    with pytest.raises(MooError, match=r"en\.parquet:2: broken UTF-8, byte 0xff"):
        _build(tmp_path, "en.parquet", sft={"max_length": 64})
    entry = _build(tmp_path, "en.parquet", sft={"max_length": 64}, skip_budget=1).entry("en", "train")
    assert entry.documents == 2
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "en.parquet")
    with pytest.raises(MooError, match=r"en\.parquet: no column `messages`.*there are words"):
        _build(tmp_path, "en.parquet", sft={"max_length": 64})


def test_a_long_line_in_a_zst_is_skipped_quickly_in_bounded_memory(tmp_path: Path) -> None:
    good = b'{"text": "lines 9"}\n'
    packer = zstandard.ZstdCompressor().compressobj()
    with (tmp_path / "en.jsonl.zst").open("wb") as file:
        file.write(packer.compress(good + b'{"text": "'))
        for _ in range(200):
            file.write(packer.compress(b"x" * 1_000_000))
        file.write(packer.compress(b'"}\n' + good) + packer.flush())
    assert (tmp_path / "en.jsonl.zst").stat().st_size < 100_000
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    entry = _build(tmp_path, "en.jsonl.zst", skip_budget=1, max_line_bytes=4_000_000).entry("en", "train")
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert (entry.documents, entry.skipped_count) == (2, 1)
    assert "a record of 200000012 bytes" in entry.skipped[0]
    assert grown < 40_000, f"{grown} kB more memory for a 200,000 kB line"
    assert time.process_time() - start < 5


@pytest.mark.parametrize("what", ["cut", "second frame cut", "garbage", "a few bytes", "checksum cut"])
def test_a_zst_that_is_not_whole_is_refused(tmp_path: Path, what: str) -> None:
    data = b"".join(json.dumps({"text": f"{i * i}"}).encode() + b"\n" for i in range(50_000))
    one = zstandard.ZstdCompressor(write_checksum=True).compress(data)
    whole = one + b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc" + one  # a skippable frame between two
    file = tmp_path / "en.jsonl.zst"
    file.write_bytes(whole)
    assert _build(tmp_path, file.name).documents("en", "train") == 100_000
    file.write_bytes(
        {
            "cut": one[: len(one) // 2],
            "second frame cut": whole[: -len(one) // 2],
            "garbage": whole + b"garbage " * 9,
            "a few bytes": whole + one[:7],
            "checksum cut": one[:-2],
        }[what]
    )
    with pytest.raises(MooError, match=r"en\.jsonl\.zst: cannot be read"):
        _build(tmp_path, file.name)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_table_comes_in_small_blocks_of_the_needed_column_in_one_pass(tmp_path: Path, kind: str) -> None:
    rows = [f"row {i} " + "x" * 900 for i in range(20_000)]
    rows[7] = "y" * 3_000_000
    table = pa.table({"text": rows, "other": ["z" * 2000] * len(rows)})
    if kind == "parquet":
        path = tmp_path / "en.parquet"
        pq.write_table(table, path, row_group_size=len(rows), compression="zstd")
    else:
        path = _saved(tmp_path / "en", table.combine_chunks().to_batches()) / "d.arrow"
    reading = Reading(max_line_bytes=2_000_000)
    blocks = list(read_blocks(path, reading))
    assert max(len(block.data) for block in blocks) < 1.1 * 2**20
    assert sum(len(block.data) for block in blocks) < 1.1 * sum(map(len, rows)), "the other column stays out"
    found = [item for block in blocks for item in texts(block, reading)]
    assert found[:7] + found[8:] == rows[:7] + rows[8:]
    assert str(found[7]).startswith(f"{path}:8: a record of 3000")
    assert blocks[-1].done == pytest.approx(path.stat().st_size, rel=0.01)


@pytest.mark.parametrize("limit", [100, 200_000])
def test_records_below_a_block_are_held_to_the_limit_too(tmp_path: Path, limit: int) -> None:
    rows = ["short", "z" * (limit + 50), "brief"]
    (tmp_path / "en.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in rows))
    (tmp_path / "en.txt").write_text("\n".join(rows))
    pq.write_table(pa.table({"text": rows}), tmp_path / "en.parquet")
    for name in ("en.jsonl", "en.txt", "en.parquet"):
        reading = {"max_line_bytes": limit, "documents": "line"}
        words = rf"{name}:2: a record of \d+ bytes, more than reading.max_line_bytes = {limit}"
        with pytest.raises(MooError, match=words):
            _build(tmp_path, name, **reading)
        assert _build(tmp_path, name, skip_budget=1, **reading).documents("en", "train") == 2


@pytest.mark.parametrize("name", ["en.jsonl", "en.jsonl.gz", "en.jsonl.zst", "en.parquet", "en"])
def test_progress_reaches_the_size_of_the_files(tmp_path: Path, name: str) -> None:
    rows = [f"row {i} {'wort ' * (i % 97)}" for i in range(20_000)]
    data = "".join(json.dumps({"text": t}) + "\n" for t in rows).encode()
    (tmp_path / "en.jsonl").write_bytes(data)
    (tmp_path / "en.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "en.jsonl.zst").write_bytes(zstandard.compress(data))
    pq.write_table(pa.table({"text": rows}), tmp_path / "en.parquet")
    _saved(tmp_path / "en", pa.table({"text": rows}).to_batches(1000))
    told: list[tuple[int, int]] = []
    _build(tmp_path, name, progress=lambda tag, split, done, total: told.append((done, total)))
    path = tmp_path / name if name != "en" else tmp_path / "en" / "d.arrow"
    assert {total for _, total in told} == {path.stat().st_size}
    assert told == sorted(told)
    assert told[-1][0] == pytest.approx(told[-1][1], rel=0.01)
    assert len({done for done, _ in told}) > 1 or path.suffix in (".zst", ".gz")
