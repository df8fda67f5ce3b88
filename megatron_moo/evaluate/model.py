"""A model to evaluate: a Hugging Face folder, or a run (through the exporter), with its tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from megatron_moo.data.tokenizers import HFTokenizer, Tokenizer, make_tokenizer
from megatron_moo.errors import MooError

BYTES = {"type": "byte"}


@dataclass
class Opened:
    """What is evaluated.

    Attributes:
        name: for tables.
        hf: Hugging Face folder that holds the weights (a temporary one for a run).
        model: transformers' model, fp32, in evaluation mode.
        tokenizer: of the run's corpus, or of the folder.
        max_length: most tokens of a sequence.
        run: run folder, or None.
        corpus: built corpus of the run, or None.
        step: of the run's checkpoint, or None.
        bos: ids that stand before every text and are not scored; the tokenizer above does not add them.
    """

    name: str
    hf: Path
    model: Any
    tokenizer: Tokenizer
    max_length: int
    run: Path | None = None
    corpus: Any = None
    step: int | None = None
    bos: tuple[int, ...] = ()


@contextmanager
def open_model(path: Path, tokenizer: str | None = None) -> Iterator[Opened]:
    """Open a Hugging Face folder, a run folder (its newest checkpoint) or one checkpoint of a run.

    Args:
        path: folder with ``config.json``, or with ``recipe.yaml`` and ``checkpoints/``, or that one's
            ``checkpoints/iter_…``.
        tokenizer: ``byte``, a folder in Hugging Face's format or a SentencePiece model; None: the run's or
            folder's own.

    Raises:
        MooError: for neither kind of folder, and for what the exporter or transformers refuse.
    """
    if (path / "config.json").is_file():
        own = _tokenizer(tokenizer or str(path))
        found = _opened(path.name or str(path), path, own)
        found.bos = own.around()[0] if isinstance(own, HFTokenizer) else ()
        yield found
        return
    source, name = path / "checkpoints", path.name
    if path.name.startswith("iter_") and path.resolve().parent.name == "checkpoints":
        source, path = path, path.resolve().parent.parent
        name = f"{path.name}-{source.name}"
    recipe = path / "recipe.yaml"
    if not recipe.is_file() or not (path / "checkpoints").is_dir():
        raise MooError(
            "neither a Hugging Face folder nor a run with checkpoints",
            str(path),
            "give runs/NAME or a folder with config.json",
        )
    from megatron_moo.convert.exporter import export_checkpoint
    from megatron_moo.data import open_corpus

    flags = yaml.safe_load(recipe.read_text(encoding="utf-8"))["flags"]
    corpus = open_corpus(Path(flags["corpus"])) if Path(flags.get("corpus", "")).is_dir() else None
    if corpus is None and tokenizer is None:
        raise MooError("its corpus is gone, and with it the tokenizer", str(path), "give --tokenizer")
    if corpus is not None and not _same_languages(path, corpus):
        if tokenizer is None:
            raise MooError(
                "is no longer the corpus of the run: it has other languages",
                str(corpus.path),
                "give --text and --tokenizer",
            )
        corpus = None
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "hf"
        exported = export_checkpoint(source, target)
        plain, bos = begin_as_corpus(corpus.tokenizer() if corpus is not None else make_tokenizer(BYTES))
        found = _opened(name, target, _tokenizer(tokenizer) if tokenizer else plain)
        found.run, found.corpus, found.bos = path, corpus, bos
        found.step = _step(exported.checkpoint.folder.name)
        yield found


def begin_as_corpus(tokenizer: Tokenizer) -> tuple[Tokenizer, tuple[int, ...]]:
    """A corpus's tokenizer without what it puts around a text, and what it put before each.

    ``data build`` puts nothing there; ``tools/preprocess_data.py`` lets a Hugging Face tokenizer do what it does.
    """
    if not isinstance(tokenizer, HFTokenizer) or not tokenizer.special:
        return tokenizer, ()
    return tokenizer.plain(), tokenizer.around()[0]


def _step(name: str) -> int | None:
    """The step of ``iter_0000100``."""
    digits = name.removeprefix("iter_")
    return int(digits) if digits.isdigit() else None


def _same_languages(run: Path, corpus: Any) -> bool:
    """Whether a corpus still has the languages that the run validated; another manifest may have been built there."""
    from megatron_moo.report.metrics import read_metrics

    valids = read_metrics(run).valids
    return not valids or {*valids[-1].seen, *valids[-1].unseen} == set(corpus.tags("valid"))


def _tokenizer(what: str) -> Tokenizer:
    if what == "byte":
        return make_tokenizer(BYTES)
    if what.endswith(".model"):
        return make_tokenizer({"type": "sentencepiece", "model": what})
    return make_tokenizer({"type": "hf", "path": what})


def _opened(name: str, hf: Path, tokenizer: Tokenizer) -> Opened:
    model = load(hf)
    vocabulary = int(model.config.vocab_size)
    if tokenizer.vocab_size > vocabulary:
        raise MooError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model {vocabulary} rows",
            str(hf),
            "give --tokenizer",
        )
    longest = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    return Opened(name, hf, model, tokenizer, longest)


def load(hf: Path) -> Any:
    """transformers' model of a folder, fp32, on the CPU or the first GPU; no code of the folder runs.

    Raises:
        MooError: transformers is not installed, or refuses the folder.
    """
    import os

    import torch

    if os.path.lexists(hf / "adapter_config.json"):
        # transformers would load the base model that this file names instead of the folder.
        raise MooError("has an adapter_config.json", str(hf), "take it out, or merge the adapter")
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging
    except ImportError:
        raise MooError("needs the package transformers", "eval", "pip install transformers") from None
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            hf, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise MooError(
            f"transformers cannot load it ({str(error).splitlines()[0][:160]})", str(hf)
        ) from error
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
