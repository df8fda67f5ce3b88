"""The build: Megatron's format, sources of all kinds, workers, resume, SentencePiece."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from megatron_moo.data import Corpus, build_corpus, load_manifest
from megatron_moo.data import build_split as build_split_module
from megatron_moo.data.indexed import IndexedWriter, open_indexed
from megatron_moo.data.tokenizers import ByteTokenizer
from megatron_moo.errors import MooError

TEXTS = [f"Text Nummer {i}. Ünïcödé 한글 {'x' * (i % 17)}" for i in range(300)]


def _build(
    folder: Path, sources: dict[str, list[str]], out: str = "corpus", workers: int = 1, **extra: Any
) -> Corpus:
    path = folder / "languages.yaml"
    languages = {tag: {"train": names} for tag, names in sources.items()}
    path.write_text(yaml.safe_dump({"tokenizer": "byte", **extra, "languages": languages}, sort_keys=False))
    return build_corpus(load_manifest(path), folder / out, workers=workers)


def _documents(corpus: Corpus, tag: str = "en") -> list[str]:
    stream = corpus.stream(tag, "train")
    tokens = stream.read(0, len(stream))
    pieces = np.split(tokens, np.flatnonzero(tokens == corpus.eod) + 1)
    return [bytes(piece[:-1].tolist()).decode() for piece in pieces if len(piece)]


def _jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()


def test_megatron_reads_what_we_write_and_writes_the_same_bytes(tmp_path: Path) -> None:
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

    (tmp_path / "en.jsonl").write_bytes(_jsonl(TEXTS))
    corpus = _build(tmp_path, {"en": ["en.jsonl"]})
    ours = corpus.path / "en" / "train"
    dataset = IndexedDataset(str(ours))
    expected = [[*text.encode(), 256] for text in TEXTS]
    assert [list(map(int, dataset[i])) for i in range(len(dataset))] == expected
    builder = IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.uint16)
    for document in expected:
        builder.add_document(torch.tensor(document), [len(document)])
    builder.finalize(str(tmp_path / "m.idx"))
    for suffix in ("bin", "idx"):
        assert (tmp_path / f"m.{suffix}").read_bytes() == Path(f"{ours}.{suffix}").read_bytes()


def test_megatron_reads_our_loss_modes(tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    writer = IndexedWriter(tmp_path / "m", np.int32)
    writer.add(np.arange(9), np.array([2, 3, 4]), np.array([2, 1]), np.array([0, 1, 0]))
    writer.finish()
    dataset = IndexedDataset(str(tmp_path / "m"), multimodal=True)
    assert [(tokens.tolist(), int(mode)) for tokens, mode in (dataset[i] for i in range(3))] == [
        ([0, 1], 0), ([2, 3, 4], 1), ([5, 6, 7, 8], 0),
    ]  # fmt: skip
    assert dataset.document_indices.tolist() == [0, 2, 3]
    assert open_indexed(tmp_path / "m").modes is not None


def test_every_kind_of_source_gives_the_same_documents(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    data = _jsonl(TEXTS)
    (tmp_path / "en.jsonl").write_bytes(data)
    (tmp_path / "en.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "en.jsonl.zst").write_bytes(zstandard.compress(data[:700]) + zstandard.compress(data[700:]))
    (tmp_path / "en.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "windows.txt").write_bytes("\r\n\r\n\r\n".join(TEXTS).encode())
    table = pa.table({"text": TEXTS, "other": list(range(300))})
    pq.write_table(table, tmp_path / "en.parquet", row_group_size=70)
    saved = tmp_path / "saved"
    saved.mkdir()
    with (
        pa.OSFile(str(saved / "data-00000-of-00001.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as out,
    ):
        out.write_table(table, max_chunksize=64)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
    (saved / "state.json").write_text(json.dumps(state))
    first = _build(tmp_path, {"en": ["en.jsonl"]})
    assert _documents(first) == TEXTS
    sources = [
        "en.jsonl.gz",
        "en.jsonl.zst",
        "en.txt",
        "windows.txt",
        "en.parquet",
        "saved",
        "corpus/en/train",
    ]
    for number, name in enumerate(sources):
        other = _build(tmp_path, {"en": [name]}, f"corpus{number}")
        assert _documents(other) == TEXTS, name
        assert other.entry("en", "train").bytes == first.entry("en", "train").bytes, name
        assert other.entry("en", "train").characters == first.entry("en", "train").characters, name


def test_a_folder_saved_by_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    parts = {
        "train": datasets.Dataset.from_dict({"text": TEXTS}),
        "test": datasets.Dataset.from_dict({"text": ["t"]}),
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(MooError, match=r"several splits.*one of train, test"):
        _build(tmp_path, {"en": ["saved"]})
    assert _documents(_build(tmp_path, {"en": ["saved"]}, reading={"split": "train"})) == TEXTS


def test_sources_are_joined_in_order_and_documents_can_be_lines_or_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "b.jsonl").write_bytes(_jsonl(["four"]))
    for documents, expected in {
        "paragraph": ["one\ntwo", "three", "four"],
        "line": ["one", "two", "three", "four"],
        "file": ["one\ntwo\n\nthree", "four"],
    }.items():
        corpus = _build(tmp_path, {"en": ["a.txt", "b.jsonl"]}, documents, reading={"documents": documents})
        assert _documents(corpus) == expected


def test_blocks_are_cut_between_records_and_the_worker_count_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_moo.data import sources

    (tmp_path / "en.jsonl").write_bytes(_jsonl(TEXTS))
    (tmp_path / "de.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    whole = _build(tmp_path, {"en": ["en.jsonl"], "de": ["de.txt"]})
    monkeypatch.setattr(sources, "BLOCK_BYTES", 333)
    pieces = _build(tmp_path, {"en": ["en.jsonl"], "de": ["de.txt"]}, "two", workers=2)
    assert pieces.fingerprint == whole.fingerprint
    assert _documents(pieces, "de") == TEXTS


@pytest.mark.parametrize("after", [1, 7, 20])
def test_an_interrupted_build_is_invisible_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    from megatron_moo.data import encode, pool, sources

    monkeypatch.setattr(sources, "BLOCK_BYTES", 600)
    # A clock that ticks once a look: a commit every few blocks, so that the stop leaves uncommitted tokens behind.
    ticks = itertools.count()
    monkeypatch.setattr(build_split_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(build_split_module, "COMMIT_SECONDS", 3)
    names = {"en": ["en.jsonl"], "de": ["de.jsonl"]}
    (tmp_path / "en.jsonl").write_bytes(_jsonl(TEXTS))
    (tmp_path / "de.jsonl").write_bytes(_jsonl(TEXTS[:40]))
    whole = _build(tmp_path, names, "whole")
    calls = 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after:
            raise KeyboardInterrupt
        return encode.encode_with(*args)

    monkeypatch.setattr(pool, "encode_with", failing)
    with pytest.raises(KeyboardInterrupt):
        _build(tmp_path, names)
    assert not (tmp_path / "corpus").exists()
    stopped, calls = calls, 10_000
    resumed = _build(tmp_path, names)
    assert resumed.fingerprint == whole.fingerprint
    blocks = len((tmp_path / "en.jsonl").read_bytes()) // 600
    assert calls - 10_000 <= blocks + 12 - stopped + 5, "finished blocks are not tokenised again"


def test_a_finished_build_is_reused_and_a_changed_source_builds_anew(tmp_path: Path) -> None:
    (tmp_path / "en.jsonl").write_bytes(_jsonl(TEXTS))
    first = _build(tmp_path, {"en": ["en.jsonl"]})
    stamp = (first.path / "build.json").stat().st_mtime_ns
    assert _build(tmp_path, {"en": ["en.jsonl"]}).fingerprint == first.fingerprint
    assert (first.path / "build.json").stat().st_mtime_ns == stamp
    (tmp_path / "en.jsonl").write_bytes(_jsonl(TEXTS[1:]))
    assert _documents(_build(tmp_path, {"en": ["en.jsonl"]})) == TEXTS[1:]


def test_sentencepiece_is_trained_with_the_law_and_gives_back_the_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = {tag: ["".join(rng.choice(list(letters), 5)) for _ in range(60)]
             for tag, letters in {"en": "abcdefg", "ru": "абвгдеж"}.items()}  # fmt: skip
    for tag, size in {"en": 4000, "ru": 100}.items():
        text = "\n\n".join(" ".join(rng.choice(words[tag], 8)) for _ in range(size))
        (tmp_path / f"{tag}.txt").write_text(text, encoding="utf-8")
    spec = {"type": "sentencepiece", "vocab_size": 400, "train": True}
    found = {}
    for law in ("uniform", "proportional"):
        corpus = _build(tmp_path, {"en": ["en.txt"], "ru": ["ru.txt"]}, law, tokenizer=spec, sampling=law)
        assert corpus.vocab_size == 400
        entry = corpus.entry("ru", "train")
        found[law] = entry.tokens / entry.characters
        tokenizer = corpus.tokenizer()
        stream = corpus.stream("ru", "train")
        text = tokenizer.decode([t for t in stream.read(0, len(stream)).tolist() if t != corpus.eod])
        assert text == (tmp_path / "ru.txt").read_text(encoding="utf-8").replace("\n\n", "")
    assert found["uniform"] < 0.8 * found["proportional"], (
        "the small language gets pieces when the law favours it"
    )


def test_a_vocabulary_that_does_not_fit_is_named(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("tiny text")
    with pytest.raises(MooError, match="SentencePiece could not be trained"):
        _build(
            tmp_path,
            {"en": ["en.txt"]},
            tokenizer={"type": "sentencepiece", "vocab_size": 9000, "train": True},
        )


def test_a_foreign_tokenizer_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    spec = {"type": "sentencepiece", "vocab_size": 300, "train": True}
    other = _build(tmp_path, {"en": ["en.txt"]}, "sp", tokenizer=spec)
    with pytest.raises(MooError, match=r"was made by tokenizer sentencepiece:.*not by byte"):
        _build(tmp_path, {"en": ["sp/en/train"]})
    with pytest.raises(MooError, match=r"tokenizer byte .* is not the corpus's sentencepiece"):
        other.require_tokenizer(ByteTokenizer())


def test_external_pairs_outside_the_vocabulary_or_damaged_are_refused(tmp_path: Path) -> None:
    writer = IndexedWriter(tmp_path / "pair", np.int32)
    writer.add(np.array([5, 6, 700, 8]), np.array([4]), np.array([1]))
    writer.finish()
    with pytest.raises(MooError, match=r"pair\.bin: token 700 is outside the vocabulary of 257, offset 8"):
        _build(tmp_path, {"en": ["pair"]})
    (tmp_path / "pair.bin").write_bytes((tmp_path / "pair.bin").read_bytes()[:-2])
    with pytest.raises(MooError, match=r"pair\.bin: truncated: 14 bytes where the index says 16, offset 14"):
        _build(tmp_path, {"en": ["pair"]})


def test_the_largest_token_that_occurs(tmp_path: Path) -> None:
    """A tokenizer may have ids that no text uses, and a model no row for them (Gemma 3)."""
    (tmp_path / "a.txt").write_text("abc\n")
    (tmp_path / "b.txt").write_text("xyz, the end\n")
    corpus = _build(tmp_path, {"en": ["a.txt"], "de": ["b.txt"]})
    read = [corpus.stream(tag, "train").read(0, corpus.tokens(tag, "train")) for tag in ("en", "de")]
    assert corpus.largest_token() == max(int(tokens.max()) for tokens in read) < corpus.vocab_size
