"""Small corpora for the data tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import yaml

from megatron_moo.data import Corpus, Manifest, build_corpus, load_manifest

MakeCorpus = Callable[..., tuple[Manifest, Corpus]]


@pytest.fixture
def make_corpus(tmp_path: Path) -> MakeCorpus:
    """make_corpus({tag: tokens or text}, **manifest keys) -> (manifest, corpus); an int makes one document
    of that length."""

    def make(
        texts: Mapping[str, int | str], per_language: Mapping[str, dict] | None = None, **extra: object
    ) -> tuple[Manifest, Corpus]:
        languages = {}
        for number, (tag, text) in enumerate(texts.items()):
            if isinstance(text, int):
                rng = np.random.default_rng(number)
                text = "".join(chr(97 + int(i)) for i in rng.integers(0, 26, text - 1))
            (tmp_path / f"{tag}.txt").write_text(text)
            languages[tag] = {
                "train": [f"{tag}.txt"],
                "valid": [f"{tag}.txt"],
                **(per_language or {}).get(tag, {}),
            }
        path = tmp_path / "languages.yaml"
        path.write_text(
            yaml.safe_dump({"tokenizer": "byte", "languages": languages, **extra}, sort_keys=False)
        )
        manifest = load_manifest(path)
        return manifest, build_corpus(manifest, tmp_path / "corpus")

    return make
