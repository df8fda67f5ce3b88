"""The commands, through the parser, and tools/preprocess_data.py."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest

from megatron_moo.data import open_corpus
from megatron_moo.data.cli import add_subcommands
from megatron_moo.data.indexed import open_indexed
from megatron_moo.data.preprocess import preprocess
from megatron_moo.errors import MooError
from tests.unit.data.conftest import MakeCorpus


def _call(*words: object) -> int:
    parser = argparse.ArgumentParser()
    add_subcommands(parser.add_subparsers(required=True))
    args = parser.parse_args(["data", *map(str, words)])
    return int(args.func(args))


def test_build_inspect_verify(
    make_corpus: MakeCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, _ = make_corpus({"en": "one two\n\nthree", "de": 400, "fr": 5}, sampling="proportional")
    out = tmp_path / "again"
    assert _call("build", manifest.path, "--out", out) == 0
    table = capsys.readouterr().out
    assert "tokens/byte" in table
    assert open_corpus(out).documents("en", "train") == 2
    assert _call("inspect", out, "--manifest", manifest.path, "--seq-length", 32, "--language", "en") == 0
    shown = capsys.readouterr().out
    assert "[[one two" in shown
    assert "three" in shown
    assert "fr: 5 tokens are shorter than one sequence of 32" in shown
    assert _call("verify", out) == 0
    data = bytearray((out / "de" / "train.bin").read_bytes())
    data[99] ^= 4
    (out / "de" / "train.bin").write_bytes(data)
    assert _call("verify", out) == 1
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "de/train.bin: damaged between offsets 0 and" in errors


def test_inspect_and_prepare_refuse_by_name(make_corpus: MakeCorpus) -> None:
    _, corpus = make_corpus({"en": 50})
    with pytest.raises(MooError, match="no valid data for language 'xx'"):
        _call("inspect", corpus.path, "--language", "xx")
    with pytest.raises(MooError, match="give --out DIR"):
        _call("prepare", "udhr")


def test_preprocess_data_with_and_without_eod(tmp_path: Path) -> None:
    rows = [{"text": "abc", "title": "x"}, {"text": "de", "title": "yz"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--input", str(tmp_path / "in.jsonl"), "--tokenizer-type", "ByteTokenizer", "--workers", "1"]
    keys = ["--json-keys", "text", "title"]
    made = preprocess([*flags, *keys, "--append-eod", "--output-prefix", str(tmp_path / "a")])
    assert [path.name for path in made] == ["a_text_document", "a_title_document"]
    assert open_indexed(made[0]).tokens.tolist() == [97, 98, 99, 256, 100, 101, 256]
    assert open_indexed(made[1]).lengths.tolist() == [2, 3]
    plain = open_indexed(preprocess([*flags, "--output-prefix", str(tmp_path / "b")])[0])
    np.testing.assert_array_equal(plain.tokens, [97, 98, 99, 100, 101])
    assert plain.lengths.tolist() == [3, 2]
    (tmp_path / "in.jsonl").write_text('{"text": "ok"}\n{"no": 1}\n')
    with pytest.raises(MooError, match=r"in\.jsonl:2: no key 'text', offset 15"):
        preprocess([*flags, "--output-prefix", str(tmp_path / "c")])
    assert not (tmp_path / "c_text_document.bin").exists()
    with pytest.raises(MooError, match="unknown tokenizer type 'GPT2BPETokenizer'"):
        preprocess([*flags[:2], "--tokenizer-type", "GPT2BPETokenizer", *flags[4:], "--output-prefix", "d"])
    with pytest.raises(MooError, match="no such file"):
        preprocess(["--input", "missing.jsonl", *flags[2:], "--output-prefix", "d"])


def test_a_light_import() -> None:
    import subprocess
    import sys

    code = (
        "import sys, megatron_moo.data, megatron_moo.data.cli; print([m for m in ('torch', 'megatron.core', "
    )
    code += "'transformers', 'pyarrow', 'sentencepiece') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
