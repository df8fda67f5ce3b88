"""The experiment's text: capped training text of six languages, held-out text of nine, as bytes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
import yaml

from megatron_moo.data import (
    Corpus,
    LaneBatches,
    LaneSchedule,
    LanguageSampler,
    Manifest,
    MixedBatches,
    build_corpus,
    load_manifest,
    plan_shares,
)
from megatron_moo.data.collate import collate
from megatron_moo.data.manifest import SamplingSpec
from megatron_moo.errors import MooError
from megatron_moo.experiment.setting import SEEN, UNSEEN, Setting

Batch = dict[str, torch.Tensor]


def prepare(source: Path, folder: Path, setting: Setting) -> Path:
    """Write capped training text and a manifest.

    Args:
        source: folder with ``train/TAG.jsonl`` and ``valid/TAG.jsonl`` (``megatron-moo data prepare``).
        folder: where to write.
        setting: the caps.

    Returns:
        the manifest's path.

    Raises:
        MooError: a language is missing.
    """
    for kind, tags in (("train", SEEN), ("valid", (*SEEN, *UNSEEN))):
        for tag in tags:
            if not (source / kind / f"{tag}.jsonl").is_file():
                raise MooError(
                    f"no {kind}/{tag}.jsonl",
                    str(source),
                    f"run megatron-moo data prepare libreoffice-help --out {source}",
                )
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for tag in SEEN:
        text = _capped(source / "train" / f"{tag}.jsonl", setting.train_bytes[tag])
        (folder / "train" / f"{tag}.jsonl").write_text(text, encoding="utf-8")

    def valid(tag: str) -> list[str]:
        return [str((source / "valid" / f"{tag}.jsonl").resolve())]

    manifest = {
        "tokenizer": "byte",
        "sampling": "uniform",
        "languages": {tag: {"train": [f"train/{tag}.jsonl"], "valid": valid(tag)} for tag in SEEN},
        "unseen": {tag: {"valid": valid(tag)} for tag in UNSEEN},
    }
    path = folder / "languages.yaml"
    path.write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
    return path


def _capped(path: Path, cap: int) -> str:
    """Documents in the order of a hash of their name (so that languages get the same pages), up to ``cap`` bytes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    lines.sort(key=lambda line: crc32(str(json.loads(line).get("id", line)).encode()))
    kept, size = [], 0
    for line in lines:
        size += len(json.loads(line)["text"].encode())
        kept.append(line)
        if size >= cap:
            break
    return "\n".join(kept) + "\n"


class Text:
    """Batches and held-out windows of the built corpus.

    Args:
        manifest_path: from :func:`prepare`.
        corpus_dir: where it is built to.
        setting: sizes.
    """

    def __init__(self, manifest_path: Path, corpus_dir: Path, setting: Setting) -> None:
        self.setting = setting
        self.manifest: Manifest = load_manifest(manifest_path)
        self.corpus: Corpus = build_corpus(self.manifest, corpus_dir)
        self.vocab = self.corpus.vocab_size
        self._valid: dict[str, tuple[Batch, Batch]] = {}

    def bytes_of(self) -> dict[str, int]:
        """Training bytes per language."""
        return {tag: int(self.corpus.stream(tag, "train").bytes) for tag in SEEN}

    def lanes(self, seed: int) -> Iterator[Batch]:
        """Steps of ``[K * micro_batch, seq]``, language by language, as ``megatron-moo train`` draws them."""
        setting, count = self.setting, len(SEEN)
        sampler = LanguageSampler(self.corpus, "train", setting.seq, seed)
        schedule = LaneSchedule(count, lanes=1, slots=count, seed=seed)
        batches = LaneBatches(
            sampler, schedule, self.manifest, micro_batch_size=setting.micro_batch, micro_batches=1, seed=seed
        )
        for step in itertools.count():
            batch = _joined([next(batches) for _ in range(count)])
            if setting.rare is not None:
                first = SEEN.index(setting.rare[0]) * setting.micro_batch
                _silence(batch, first + setting.rare_sequences(step), first + setting.micro_batch)
            yield batch

    def mixed(self, seed: int, sampling: SamplingSpec) -> Iterator[Batch]:
        """Steps of as many samples, each drawn by a sampling law."""
        setting, count = self.setting, len(SEEN)
        sampler = LanguageSampler(self.corpus, "train", setting.seq, seed)
        manifest = replace(self.manifest, sampling=sampling)
        shares = plan_shares(manifest, sampler, "law", setting.steps * setting.tokens_per_step)
        batches = MixedBatches(
            sampler,
            manifest,
            micro_batch_size=count * setting.micro_batch,
            micro_batches=1,
            seed=seed,
            shares=shares,
        )
        for step, batch in enumerate(batches):
            joined = _joined([batch])
            if setting.rare is not None:  # as many tokens as with a language per lane
                whole = (count - 1) * setting.micro_batch + setting.rare_sequences(step)
                _silence(joined, whole, count * setting.micro_batch)
            yield joined

    def valid(self, tag: str, tuning: bool) -> Batch:
        """Held-out windows spread evenly over a language's text: every other one tunes, the rest is reported."""
        if tag not in self._valid:
            sampler = LanguageSampler(self.corpus, "valid", self.setting.seq, 0)
            there, wanted = sampler.samples(tag) - 1, self.setting.valid_windows
            if there < wanted:
                raise MooError(f"{there} held-out windows of {tag}, {wanted} wanted", "experiment")
            windows = [sampler.sample(tag, i * there // wanted) for i in range(wanted)]
            self._valid[tag] = (_joined([collate(windows[0::2])]), _joined([collate(windows[1::2])]))
        return self._valid[tag][0 if tuning else 1]


def _silence(batch: Batch, first: int, last: int) -> None:
    """Leave sequences out of the loss."""
    batch["loss_mask"][first:last] = 0.0


def _joined(batches: list[dict[str, Any]]) -> Batch:
    keys = ("tokens", "labels", "loss_mask", "position_ids")
    return {key: torch.cat([batch[key] for batch in batches]) for key in keys}
