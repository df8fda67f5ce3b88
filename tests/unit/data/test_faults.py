"""Bad input: every fault with file, line and offset; memory bounded; damage never served."""

from __future__ import annotations

import json
import random
import resource
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_moo.data import Corpus, build_corpus, load_manifest, open_corpus
from megatron_moo.data.verify import verify_corpus
from megatron_moo.errors import MooError


def _build(folder: Path, source: str, **reading: object) -> Corpus:
    path = folder / "languages.yaml"
    spec = {"tokenizer": "byte", "reading": reading, "languages": {"en": {"train": [source]}}}
    path.write_text(yaml.safe_dump(spec))
    return build_corpus(load_manifest(path), folder / "corpus")


BAD = {
    b'{"text": "caf\xe9"}': "broken UTF-8, byte 0xe9, offset 33",
    b'{"text": "a\\u0000b"}': "a NUL character, offset 20",
    b'{"text": "a\x00b"}': "not JSON: Invalid control character",
    b'{"txt": "a"}': "no key 'text', offset 20",
    b'{"text": 3}': "the text is int, not a string",
    b'{"text": "\\ud800"}': "a lone surrogate at character 0",
    b'["text"]': "a JSON list, not an object",
    b'{"text": "a"': "not JSON",
    b'{"text": ' + b"[" * 10_000 + b"]" * 10_000 + b"}": "nested too deeply",
    b'{"text": "x", "n": ' + b"9" * 5000 + b"}": "not usable JSON",
}


@pytest.mark.parametrize("bad", BAD, ids=lambda b: b[:20].decode("latin1"))
def test_a_bad_line_is_named_and_can_be_skipped(tmp_path: Path, bad: bytes) -> None:
    good = b'{"text": "lines 9"}\n'
    assert len(good) == 20
    (tmp_path / "en.jsonl").write_bytes(good + bad + b"\n" + good)
    with pytest.raises(MooError) as caught:
        _build(tmp_path, "en.jsonl")
    assert f"en.jsonl:2: {BAD[bad]}" in str(caught.value)
    assert "offset " in str(caught.value)
    assert not (tmp_path / "corpus").exists(), "nothing is visible of a failed build"
    corpus = _build(tmp_path, "en.jsonl", skip_budget=1)
    entry = corpus.entry("en", "train")
    assert (entry.documents, entry.skipped_count) == (2, 1)
    assert "en.jsonl:2" in entry.skipped[0]


def test_a_thousand_mutated_lines(tmp_path: Path) -> None:
    rng = random.Random(0)
    kinds, lines, expected = list(BAD), [], []
    for number in range(1, 1001):
        if rng.random() < 0.5:
            lines.append(rng.choice(kinds))
            expected.append(number)
        else:
            lines.append(json.dumps({"text": f"line {number}"}).encode())
    (tmp_path / "en.jsonl").write_bytes(b"\n".join(lines))
    entry = _build(tmp_path, "en.jsonl", skip_budget=1000).entry("en", "train")
    assert entry.skipped_count == len(expected)
    assert entry.documents == 1000 - len(expected)
    assert [int(s.split("en.jsonl:")[1].split(":")[0]) for s in entry.skipped] == expected[:100]
    with pytest.raises(MooError, match=rf"en\.jsonl:{expected[7]}: .*the first 7 bad records were skipped"):
        _build(tmp_path, "en.jsonl", skip_budget=7)


def test_a_100_mb_line_is_skipped_in_bounded_memory(tmp_path: Path) -> None:
    good = b'{"text": "lines 9"}\n'
    with (tmp_path / "en.jsonl").open("wb") as file:
        file.write(good + b'{"text": "')
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + good)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    corpus = _build(tmp_path, "en.jsonl", skip_budget=1, max_line_bytes=4_000_000)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 40_000, f"{grown} kB more memory for a 100,000 kB line"
    entry = corpus.entry("en", "train")
    assert entry.documents == 2
    assert entry.skipped == (f"{tmp_path / 'en.jsonl'}:2: a record of 100000012 bytes, more than "
                             "reading.max_line_bytes = 4000000 (offset 20)",)  # fmt: skip


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_truncated_archive_is_refused(tmp_path: Path, suffix: str) -> None:
    import gzip

    import zstandard

    rng = random.Random(1)
    data = b"".join(json.dumps({"text": str(rng.random())}).encode() + b"\n" for _ in range(20_000))
    packed = gzip.compress(data) if suffix == "gz" else zstandard.compress(data)
    file = tmp_path / f"en.jsonl.{suffix}"
    file.write_bytes(packed)
    assert _build(tmp_path, file.name).documents("en", "train") == 20_000
    file.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(MooError, match=rf"en\.jsonl\.{suffix}: cannot be read"):
        _build(tmp_path, file.name)


def test_an_empty_language_is_refused(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("\n \n\n")
    with pytest.raises(MooError, match="language 'en' has no train text"):
        _build(tmp_path, "en.txt")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    (tmp_path / "en.txt").write_text("\n\n".join(f"paragraph {i} " * 40 for i in range(200)))
    return _build(tmp_path, "en.txt").path


@pytest.mark.parametrize("name", ["en/train.bin", "en/train.idx", "en/train.crc", "build.json"])
def test_every_flipped_bit_is_found_before_a_token_is_read(built: Path, name: str, tmp_path: Path) -> None:
    rng = random.Random(name)
    size = (built / name).stat().st_size
    for at in [0, size - 1, *(rng.randrange(size) for _ in range(12))]:
        copy = tmp_path / "copy"
        shutil.copytree(built, copy)
        data = bytearray((copy / name).read_bytes())
        data[at] ^= 1 << rng.randrange(8)
        (copy / name).write_bytes(data)
        with pytest.raises(MooError, match="offset") as caught:
            open_corpus(copy)
        assert name.rsplit("/", 1)[-1] in str(caught.value)
        damages = verify_corpus(copy)
        assert len(damages) == 1
        assert name in damages[0]
        if name == "en/train.bin":
            found = [int(w) for w in damages[0].replace(";", " ").split() if w.isdigit()]
            assert found[0] <= at < found[1]
            stream = open_corpus(copy, verify="lazy").stream("en", "train")
            with pytest.raises(MooError, match="damaged between"):
                stream.read(at // 2, 1)
        shutil.rmtree(copy)
    assert verify_corpus(built) == []


@pytest.mark.parametrize("name", ["en/train.bin", "en/train.idx"])
@pytest.mark.parametrize("cut", [0, 1, 33, -1])
def test_truncation_is_refused_with_the_offset(built: Path, name: str, cut: int) -> None:
    data = (built / name).read_bytes()[:cut]
    (built / name).write_bytes(data)
    with pytest.raises(MooError, match=rf"offset {len(data)}") as caught:
        open_corpus(built)
    assert str(built / name) in str(caught.value)


def test_unfinished_and_foreign_folders(tmp_path: Path, built: Path) -> None:
    with pytest.raises(MooError, match="no finished corpus here"):
        open_corpus(tmp_path / "nothing")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    with pytest.raises(MooError, match="exists and is no corpus"):
        build_corpus(load_manifest(tmp_path / "languages.yaml"), tmp_path / "foreign")
    assert (tmp_path / "foreign" / "thesis.txt").exists()
