"""Runs paired by seed, on made-up run folders."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy.stats import bootstrap

from megatron_moo.cli import main
from megatron_moo.data import build_corpus, load_manifest
from megatron_moo.errors import MooError
from megatron_moo.evaluate.compare import compare, read_run

SEEN, UNSEEN = ["en", "ko"], ["vi"]


def _write(folder: Path, seed: int, bits: dict[str, float], tokens: int = 100, **flags: Any) -> Path:
    folder.mkdir(parents=True)
    recipe = {"flags": {"seed": seed, "run-dir": str(folder), "languages": "m.yaml", "lr": 1e-3, **flags}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    step = {
        "step": 1,
        "objectives": SEEN,
        "loss": dict.fromkeys(SEEN, 2.0),
        "tokens": dict.fromkeys(SEEN, tokens),
    }
    first = {"event": "valid", "step": 0, "loss": bits, "bits_per_byte": dict.fromkeys(bits, 8.0)}
    last = {"event": "valid", "step": 1, "loss": bits, "bits_per_byte": bits}
    for record in (first, last):
        record.update(seen=SEEN, unseen=UNSEEN)
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(record) + "\n" for record in (first, step, last))
    )
    return folder


def _runs(tmp_path: Path, seeds: int = 6) -> tuple[list[Path], np.ndarray]:
    random = np.random.default_rng(0)
    paths, differences = [], []
    for seed in range(seeds):
        common, d = random.normal(2.0, 0.3), random.normal(-0.1, 0.05, 3)
        base = {"en": common, "ko": common + 0.5, "vi": common + 2}
        ours = {tag: value + x for (tag, value), x in zip(base.items(), d, strict=True)}
        paths.append(_write(tmp_path / f"mean-{seed}", seed, base, **{"moo-method": "mean"}))
        paths.append(_write(tmp_path / f"cagrad-{seed}", seed, ours, **{"moo-method": "cagrad"}))
        differences.append(d)
    return paths, np.array(differences)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    paths, d = _runs(tmp_path)
    found = compare([read_run(path) for path in paths])
    assert found.reference == "moo-method mean" and list(found.differences) == ["moo-method cagrad"]
    rows = found.differences["moo-method cagrad"]
    assert rows["en"].mean == pytest.approx(d[:, 0].mean()) and rows["vi"].mean == pytest.approx(
        d[:, 2].mean()
    )
    assert rows["seen"].mean == pytest.approx(d[:, :2].mean()) and rows["unseen"].mean == rows["vi"].mean
    assert rows["worst"].mean == pytest.approx(d[:, 1].mean())  # ko is the worst everywhere
    assert rows["en"].pairs == 6
    scipys = bootstrap(
        (d[:, 0],), np.mean, method="percentile", n_resamples=20_000, rng=1
    ).confidence_interval
    assert (rows["en"].low, rows["en"].high) == pytest.approx((scipys.low, scipys.high), abs=0.004)


def test_the_reference_can_be_chosen(tmp_path: Path) -> None:
    paths, _ = _runs(tmp_path, 2)
    found = compare([read_run(path) for path in paths], reference="cagrad-1")
    assert found.reference == "moo-method cagrad"
    with pytest.raises(MooError, match="none of the runs"):
        compare([read_run(path) for path in paths], reference="nobody")


def test_unequal_tokens_and_data_are_refused_or_said(tmp_path: Path) -> None:
    bits = {"en": 1.0, "ko": 1.0, "vi": 1.0}
    a = read_run(_write(tmp_path / "a", 1, bits, 100, **{"moo-method": "mean"}))
    b = read_run(_write(tmp_path / "b", 1, bits, 101, **{"moo-method": "cagrad"}))
    other = [
        read_run(_write(tmp_path / f"o{m}", 2, bits, 105, **{"moo-method": m})) for m in ("mean", "cagrad")
    ]
    equal = read_run(_write(tmp_path / "e", 1, bits, 100, **{"moo-method": "cagrad"}))
    assert not any(
        "UNEQUAL" in note for note in compare([a, equal, *other]).notes
    )  # another seed, other samples
    with pytest.raises(MooError, match="unequal tokens: a 200, b 202.*--allow-unequal"):
        compare([a, b])
    assert "UNEQUAL tokens" in compare([a, b], unequal=True).notes[0]
    c = read_run(_write(tmp_path / "c", 1, bits, 100, **{"moo-method": "cagrad", "languages": "other.yaml"}))
    with pytest.raises(MooError, match="unequal data"):
        compare([a, c])


def _begin(run: Path, *events: dict[str, Any]) -> None:
    path = run / "metrics.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + path.read_text())


def test_the_text_that_a_run_read_is_what_counts(tmp_path: Path) -> None:
    """The folder of a corpus is named by its manifest: text that changed later lies in the same place."""
    bits = {"en": 1.0, "ko": 1.0, "vi": 1.0}
    manifest = tmp_path / "languages.yaml"
    (tmp_path / "en.txt").write_text("some text\n\nand more of it\n" * 20)
    manifest.write_text("tokenizer: byte\nlanguages:\n  en: {train: [en.txt]}\n")
    corpus = build_corpus(load_manifest(manifest), tmp_path / "corpus")
    runs = [
        _write(tmp_path / name, 1, bits, **{"moo-method": name, "corpus": str(tmp_path / "corpus")})
        for name in ("old", "new", "older")
    ]
    _begin(runs[0], {"event": "start", "step": 0, "corpus": corpus.fingerprint})
    (tmp_path / "en.txt").write_text("other text\n\nand more of it\n" * 20)
    changed = build_corpus(load_manifest(manifest), tmp_path / "corpus")
    _begin(runs[1], {"event": "start", "step": 0, "corpus": changed.fingerprint})
    old, new, older = map(read_run, runs)
    assert (old.data, new.data) == (corpus.fingerprint, changed.fingerprint)
    with pytest.raises(MooError, match=f"unequal data: old {old.data[:12]}, new {new.data[:12]}"):
        compare([old, new])
    # A run of before: what lies there now, with a note, unless the corpus is older than the run.
    assert older.data == changed.fingerprint
    assert any("kept the fingerprint" in note and "older" in note for note in compare([new, older]).notes)
    _begin(runs[2], {"event": "start", "step": 0, "time": time.time() + 60})
    assert not any("fingerprint" in note for note in compare([new, read_run(runs[2])]).notes)
    # A resume that found other text makes it other data; another start in the same folder forgets what was before.
    _begin(runs[1], {"event": "start", "step": 0, "corpus": "x"})
    assert read_run(runs[1]).data == changed.fingerprint
    again = _write(tmp_path / "again", 1, bits)
    _begin(again, {"event": "start", "step": 0, "corpus": "x"}, {"event": "resume", "step": 1, "corpus": "y"})
    assert read_run(again).data == "x+y"


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    bits = {"en": 1.0, "ko": 1.0, "vi": 1.0}
    runs = [read_run(_write(tmp_path / f"a{i}", i, bits)) for i in range(2)]
    with pytest.raises(MooError, match="all runs have the same recipe"):
        compare(runs)
    again = read_run(_write(tmp_path / "again", 0, bits))
    with pytest.raises(MooError, match="seed 0 comes twice"):
        compare([*runs, again])
    other = read_run(_write(tmp_path / "other", 7, bits, lr=2e-3))
    with pytest.raises(MooError, match="no seed in common"):
        compare([*runs, other])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths, d = _runs(tmp_path, 3)
    out = tmp_path / "found.json"
    assert main(["compare", *map(str, paths), "--out", str(out)]) == 0
    told = json.loads(out.read_text())
    assert told["differences"]["moo-method cagrad"]["en"]["mean"] == pytest.approx(d[:, 0].mean())
    shown = capsys.readouterr().out
    assert "3 pairs by seed" in shown and "worst" in shown
    assert main(["compare", str(paths[0]), str(tmp_path)]) == 2
