"""The data side of a run: its schedule follows the batches, and losses are booked under their languages."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from megatron_moo.data import Manifest, build_corpus, load_manifest
from megatron_moo.errors import MooError
from megatron_moo.training.feed import Feed
from megatron_moo.training.forward import loss_func
from megatron_moo.training.metrics import LossBook


def _manifest(folder: Path, tags: str, sampling: str) -> Manifest:
    for number, tag in enumerate(tags.split()):
        (folder / f"{tag}.txt").write_text(f"text {tag} " * (40 + 90 * number))
    languages = {tag: {"train": [f"{tag}.txt"], "valid": [f"{tag}.txt"]} for tag in tags.split()}
    path = folder / "languages.yaml"
    path.write_text(
        yaml.safe_dump({"tokenizer": "byte", "sampling": sampling, "languages": languages}, sort_keys=False)
    )
    return load_manifest(path)


def _feed(folder: Path, tags: str, sampling: str, lanes: int, slots: int, **flags: Any) -> Feed:
    manifest = _manifest(folder, tags, sampling)
    args = Namespace(
        moo_mixed=False, moo_presence="present", seed=3, seq_length=16, train_iters=100, global_batch_size=24,
        micro_batch_size=2, moo_lane_group=1,
    )  # fmt: skip
    vars(args).update(flags)
    return Feed(args, manifest, build_corpus(manifest, folder / "corpus"), lanes, slots)


@pytest.mark.parametrize("presence", ["present", "law"])
def test_after_a_change_of_law_the_schedule_is_still_that_of_the_batches(
    tmp_path: Path, presence: str
) -> None:
    before = _feed(tmp_path, "en de fr", "uniform", 2, 2, moo_presence=presence)
    batches = iter(before.train(0, 2, 0, 0, 1))
    for _ in range(5 * 6):
        next(batches)
    state = before.state_dict()
    assert state is not None and state["step"] == 5

    after = _feed(tmp_path, "en fr it ko", "proportional", 2, 3, moo_presence=presence)
    after.load_state_dict(state)
    lanes = [iter(after.train(lane, 2, lane, 0, 1)) for lane in range(2)]
    objectives = set()
    for step in range(5, 25):
        assignment = after.assignment(step)
        for slot in range(3):
            for lane, drawn in enumerate(lanes):
                for _ in range(24 // (2 * 2 * 3)):
                    assert next(drawn)["objective"] == assignment[slot][lane]
                objectives.add(assignment[slot][lane])
    assert objectives == {0, 1, 2, 3}
    assert after.drawn()["en"] > state["consumed"]["en"]
    assert after.report()["presence"] == presence


def test_the_notes_count_what_presence_makes_of_a_small_language(tmp_path: Path) -> None:
    """Under ``present`` one of two lanes is English for the whole run, however little of it there is."""
    feed = _feed(tmp_path, "en de", {"law": "proportional"}, 2, 1)  # type: ignore[arg-type]
    samples = feed.sampler.samples("en")
    assert feed.notes[-1].startswith("text that repeats more than 4 times in this run: ")
    assert f"en {1200 / samples:.1f}x" in feed.notes[-1]


def test_rows_of_a_mixed_batch_are_booked_under_their_own_language() -> None:
    book = LossBook(3)
    mask = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    losses = torch.tensor([[1.0, 2.0, 9.0], [4.0, 9.0, 9.0], [1.0, 1.0, 1.0]])
    total, tokens, report = loss_func(mask, torch.tensor([2, 0, 2]), book.add, losses)
    assert (float(total), int(tokens), report["lm loss"].tolist()) == (10.0, 6, [10.0, 6.0])
    loss_func(mask[:1], 1, book.add, losses[:1])
    assert book.take(torch.device("cpu")).tolist() == [[4.0, 1.0], [3.0, 2.0], [6.0, 5.0]]


def test_the_manifest_of_the_data_page_can_be_trained(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq
    import zstandard

    from megatron_moo.training.evaluation import Evaluation

    page = Path(__file__).resolve().parents[3] / "docs" / "data.md"
    text = page.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    line = b'{"text": "some words of text"}\n'
    for name in ("en", "old"):
        (tmp_path / name).mkdir()
    (tmp_path / "en" / "a.jsonl.zst").write_bytes(zstandard.compress(line * 9))
    (tmp_path / "en-held-out.jsonl").write_bytes(line)
    pq.write_table(pa.table({"text": ["ein Text"] * 9}), tmp_path / "de.parquet")
    for tag in ("nl", "fy"):
        (tmp_path / f"{tag}.txt").write_text(f"{tag} has words " * 9)
    (tmp_path / "other.yaml").write_text("tokenizer: byte\nlanguages:\n  de: {train: [nl.txt]}\n")
    built = build_corpus(load_manifest(tmp_path / "other.yaml"), tmp_path / "other").path
    for end in (".bin", ".idx"):
        (tmp_path / "old" / f"de_text_document{end}").write_bytes((built / f"de/train{end}").read_bytes())
    (tmp_path / "languages.yaml").write_text(text)
    manifest = load_manifest(tmp_path / "languages.yaml")
    args = Namespace(
        moo_mixed=False, moo_presence="present", seed=3, seq_length=16, train_iters=3, global_batch_size=4,
        micro_batch_size=2, moo_lane_group=1,
    )  # fmt: skip
    corpus = build_corpus(manifest, tmp_path / "corpus")
    feed = Feed(args, manifest, corpus, 1, 2)
    assert feed.notes[0] == "without `valid`, not validated: de, nl"
    assert next(feed.train(0, 1, 0, 0, 1))["tokens"].shape == (2, 16)
    valid = feed.valid(0, 1)
    found = {valid.tags[batch["language"]] for _, batch in zip(range(len(valid)), valid, strict=False)}
    assert found == {"en", "fy"}
    evaluation = Evaluation(corpus, tuple(manifest.languages), tuple(manifest.unseen), None, None)  # type: ignore[arg-type]
    assert evaluation.book is not None
    lone = load_manifest(tmp_path / "other.yaml")
    silent = Feed(args, lone, build_corpus(lone, tmp_path / "other"), 1, 1)
    with pytest.raises(MooError, match=r"no language that is trained on has `valid`"):
        silent.valid(0, 1)
