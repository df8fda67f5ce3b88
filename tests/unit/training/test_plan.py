"""What a plan settles before any rank starts: places a step, and warnings about the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from megatron_moo.errors import MooError
from megatron_moo.training.plan import RunPlan, plan_run
from megatron_moo.training.recipe import load_recipe
from tests.end_to_end.conftest import ROOT, TINY

UDHR = ROOT / "examples" / "udhr"


def _plan(folder: Path, tags: str, *flags: str, tokenizer: str = "byte") -> RunPlan:
    lines = [f"tokenizer: {tokenizer}", "languages:"]
    lines += [
        f"  {tag}: {{train: [{UDHR}/train/{tag}.txt], valid: [{UDHR}/valid/{tag}.txt]}}"
        for tag in tags.split()
    ]
    (folder / "languages.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tiny.yaml").write_text(TINY.format(languages="languages.yaml"), encoding="utf-8")
    recipe = load_recipe(folder / "tiny.yaml", ["--run-dir", str(folder / "run"), *flags])
    return plan_run(recipe, folder / "runs", lambda text: None)


@pytest.mark.timeout(60)
def test_a_run_that_goes_on_keeps_its_places_and_its_batch(tmp_path: Path) -> None:
    first = _plan(tmp_path, "el ko tr", "--nproc", "2")
    assert (first.flags["moo-slots"], first.flags["global-batch-size"]) == (2, 8)
    assert yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["places"] == 4
    # Five objectives would get three slots; four places were what the run had.
    more = _plan(tmp_path, "el ko tr de vi", "--nproc", "2")
    assert (more.flags["moo-slots"], more.flags["global-batch-size"]) == (2, 8)
    assert more.notes[0] == "5 objectives rotate over 4 places a step: not each is in every step"
    assert more.notes[1] == "other shares than the run had: the sampling law begins anew, samples go on"
    alone = _plan(tmp_path, "el ko tr de vi", "--nproc", "1")
    assert (alone.flags["moo-slots"], alone.flags["global-batch-size"]) == (4, 8)
    with pytest.raises(
        MooError, match="its run has 4 places a step .*, these settings have 2: .*--moo-other-places"
    ):
        _plan(tmp_path, "el ko tr de vi", "--nproc", "1", "--moo-slots", "2")
    fewer = _plan(tmp_path, "el ko tr de vi", "--nproc", "1", "--moo-slots", "2", "--moo-other-places")
    assert fewer.flags["global-batch-size"] == 8
    assert fewer.notes[0].startswith("2 places a step (slots x lanes) where the run had 4: ")
    with pytest.raises(
        MooError, match="8 is not a multiple of 12 .* divide the batch of the run that goes on"
    ):
        _plan(tmp_path, "el ko tr de vi", "--nproc", "2", "--moo-slots", "3", "--moo-other-places")
    with pytest.raises(MooError, match=r"belongs to another recipe \(global-batch-size was 8 and is '12'"):
        _plan(
            tmp_path,
            "el ko tr",
            "--nproc",
            "2",
            "--moo-slots",
            "3",
            "--global-batch-size",
            "12",
            "--moo-other-places",
        )


@pytest.mark.timeout(60)
def test_collectives_wait_longer_than_the_watchdog(tmp_path: Path) -> None:
    """Unless the user says otherwise; and never so short that a stopped rank could not be named."""
    assert _plan(tmp_path, "el ko", "--nproc", "2").flags["distributed-timeout-minutes"] == 20
    asked = _plan(tmp_path, "el ko", "--nproc", "2", "--distributed-timeout-minutes", "30")
    assert asked.flags["distributed-timeout-minutes"] == 30
    with pytest.raises(
        MooError, match="--distributed-timeout-minutes: collectives fail after 10 min, before"
    ):
        _plan(tmp_path, "el ko", "--nproc", "2", "--distributed-timeout-minutes", "10")


@pytest.mark.timeout(60)
def test_mixed_languages_take_the_same_batch_in_one_pass(tmp_path: Path) -> None:
    plan = _plan(
        tmp_path, "el ko tr", "--nproc", "2", "--moo-mixed", "--moo-method", "mean", "--moo-slots", "8"
    )
    assert plan.flags["global-batch-size"] == 2 * 8 * 2
    assert "3 languages, mixed inside micro-batches, plain mean; 2 ranks" in plan.summary


@pytest.mark.timeout(60)
def test_what_repeats_is_said_before_the_run(tmp_path: Path) -> None:
    plan = _plan(tmp_path, "el ko", "--nproc", "2", "--train-iters", "4000")
    ko, el = (8000 / -(-_bytes(tag) // 32) for tag in ("ko", "el"))
    assert plan.notes == [f"text that repeats more than 4 times in this run: ko {ko:.1f}x, el {el:.1f}x"]


def _bytes(tag: str) -> int:
    """Tokens of a language: its bytes, and an end of document for each paragraph."""
    paragraphs = (UDHR / "train" / f"{tag}.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return sum(len(paragraph.strip().encode()) + 1 for paragraph in paragraphs)


@pytest.mark.timeout(60)
def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """A SentencePiece model that is trained on the languages is another one when the languages change."""
    trained = "{type: sentencepiece, train: true, vocab_size: 800}"
    _plan(tmp_path, "el ko", "--nproc", "2", tokenizer=trained)
    _plan(tmp_path, "el ko", "--nproc", "2", tokenizer=trained)
    with pytest.raises(MooError, match="trained with another tokenizer"):
        _plan(tmp_path, "el ko de", "--nproc", "2", tokenizer=trained)
