"""``build_corpus``: from a manifest to one checked .bin/.idx per language and split.

The build happens in ``.NAME.partial`` beside the target, under a lock, and is renamed into place when it is
complete. Each
language and split keeps a journal there, so an interrupted build goes on where it stopped.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from megatron_moo.data.build_split import SplitTask, build_split
from megatron_moo.data.corpus import BUILD_FILE, FORMAT, Corpus, canonical, open_corpus, read_record
from megatron_moo.data.manifest import Language, Manifest
from megatron_moo.data.pool import EncodePool, refuse_reimport
from megatron_moo.data.sources import CUTTING, expand, is_indexed
from megatron_moo.data.sp_train import train_sentencepiece
from megatron_moo.data.tokenizers import Tokenizer, make_tokenizer
from megatron_moo.errors import MooError

logger = logging.getLogger(__name__)
Progress = Callable[[str, str, int, int], None]
_SMALL = 16 * 2**20
_INLINE_BYTES = 4 * 2**20


def build_corpus(
    manifest: Manifest, out_dir: str | Path, workers: int | None = None, progress: Progress | None = None
) -> Corpus:
    """Build a corpus, or reuse the finished one that matches.

    Args:
        manifest: checked manifest.
        out_dir: the corpus folder; replaced when it holds a corpus of other inputs, refused when it holds
            anything else.
        workers: processes; None: one for small inputs, otherwise all cores (8 at most). The result does not
            depend on it.
        progress: called with (tag, split, bytes read, bytes in all).

    Raises:
        MooError: bad sources (file, line, offset), an empty language, a damaged finished build.
    """
    refuse_reimport()
    out = Path(out_dir).absolute()
    inputs = _inputs(manifest)
    _refuse_foreign(out)
    if _matches(out, inputs):
        return open_corpus(out)
    partial = out.parent / f".{out.name}.partial"
    out.parent.mkdir(parents=True, exist_ok=True)
    with _lock(out.parent / f".{out.name}.lock"):
        if _matches(out, inputs):
            return open_corpus(out)
        _prepare_partial(partial, f"{inputs} {CUTTING}")
        _build(manifest, partial, inputs, workers, progress)
        _replace(out, partial)
    return open_corpus(out)


def _build(
    manifest: Manifest, partial: Path, inputs: str, workers: int | None, progress: Progress | None
) -> None:
    tokenizer, record = _tokenizer(manifest, partial)
    tasks = list(_tasks(manifest, partial, tokenizer))
    total = sum(task.input_bytes for task in tasks)
    count = workers if workers is not None else (1 if total <= _INLINE_BYTES else min(8, os.cpu_count() or 1))
    entries = []
    with EncodePool(record["spec"], partial / "tokenizer", count) as pool:
        for task in tasks:
            entries.append(build_split(task, tokenizer, pool, progress))
    body = {
        "format": FORMAT,
        "inputs": inputs,
        "tokenizer": record,
        "sft": asdict(manifest.sft) if manifest.sft else None,
        "entries": [asdict(entry) for entry in entries],
        "files": _other_files(partial),
    }
    body["fingerprint"] = _fingerprint(body)
    (partial / BUILD_FILE).write_bytes(canonical(body))


def _fingerprint(body: Mapping[str, Any]) -> str:
    sums = [
        (entry["tag"], entry["split"], part["bin"]["sha256"], part["idx"]["sha256"])
        for entry in body["entries"]
        for part in entry["parts"]
    ]
    return hashlib.sha256(json.dumps([body["tokenizer"]["hash"], sorted(sums)]).encode()).hexdigest()


def _other_files(partial: Path) -> dict[str, str]:
    files = sorted(path for path in (partial / "tokenizer").rglob("*") if path.is_file())
    return {str(path.relative_to(partial)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _tokenizer(manifest: Manifest, partial: Path) -> tuple[Tokenizer, dict[str, Any]]:
    folder = partial / "tokenizer"
    folder.mkdir(exist_ok=True)
    spec = manifest.tokenizer
    if spec.get("train"):
        trained = folder / "sentencepiece.model"
        if not trained.exists():
            logger.info("training a SentencePiece model of %d pieces", spec["vocab_size"])
            holding = folder / "training"
            holding.mkdir(exist_ok=True)
            os.replace(train_sentencepiece(manifest, holding, manifest.sft is not None), trained)
            holding.rmdir()
        spec = {"type": "sentencepiece", "model": str(trained)}
    tokenizer = make_tokenizer(spec)
    saved = tokenizer.save(folder)
    record = {
        "spec": saved,
        "name": tokenizer.name,
        "hash": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod": tokenizer.eod,
    }
    return tokenizer, record


def _tasks(manifest: Manifest, partial: Path, tokenizer: Tokenizer) -> Iterator[SplitTask]:
    for language in [*manifest.languages.values(), *manifest.unseen.values()]:
        for split in ("train", "valid"):
            sources = getattr(language, split)
            if sources:
                yield _task(manifest, language, split, sources, partial)


def _task(
    manifest: Manifest, language: Language, split: str, sources: tuple[Path, ...], partial: Path
) -> SplitTask:
    external = tuple(source for source in sources if is_indexed(source))
    files = tuple(f for s in sources if not is_indexed(s) for f in expand(s, language.reading))
    return SplitTask(
        root=partial,
        tag=language.tag,
        split=split,
        files=files,
        external=external,
        reading=language.reading,
        sft=_sft_options(manifest, language),
        input_bytes=sum(f.stat().st_size for f in files),
    )


def _sft_options(manifest: Manifest, language: Language) -> dict[str, Any] | None:
    if manifest.sft is None:
        return None
    options = asdict(manifest.sft)
    options["template"] = language.template or options["template"]
    options["system"] = language.system if language.system is not None else options["system"]
    options["base"] = str(manifest.path.parent)
    return options


def _inputs(manifest: Manifest) -> str:
    """A key of everything that the build depends on: small files by content, large ones by size and time."""
    spec = dict(manifest.tokenizer)
    if spec["type"] == "hf":
        spec["ids"] = "up to the largest"  # corpora from before that rule are built anew
    sampling = asdict(manifest.sampling) if spec.get("train") else None
    weights = (
        {t: language.weight for t, language in manifest.languages.items()} if spec.get("train") else None
    )
    for key in ("model", "path"):
        if key in spec:
            spec[key] = _tree_key(Path(spec[key]))
    languages = []
    for language in [*manifest.languages.values(), *manifest.unseen.values()]:
        sources = {s: [_source_key(p) for p in getattr(language, s)] for s in ("train", "valid")}
        languages.append([language.tag, asdict(language.reading), _sft_key(manifest, language), sources])
    text = json.dumps([FORMAT, spec, sampling, weights, languages], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sft_key(manifest: Manifest, language: Language) -> Any:
    options = _sft_options(manifest, language)
    if options is None:
        return None
    template = Path(options.pop("base")) / options["template"]
    return [options, _file_key(template) if template.is_file() else None]


def _source_key(path: Path) -> Any:
    if is_indexed(path):
        return [str(path.absolute()), *(_tree_key(Path(f"{path}{suffix}")) for suffix in (".idx", ".bin"))]
    return [path.name, _tree_key(path)]


def _tree_key(path: Path) -> Any:
    if path.is_dir():
        return [[str(f.relative_to(path)), _file_key(f)] for f in sorted(path.rglob("*")) if f.is_file()]
    return _file_key(path)


def _file_key(path: Path) -> Any:
    if not path.exists():
        raise MooError("is missing", str(path), "check the manifest's sources")
    info = path.stat()
    if info.st_size <= _SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return [info.st_size, info.st_mtime_ns]


def _matches(out: Path, inputs: str) -> bool:
    return (out / BUILD_FILE).is_file() and read_record(out)["inputs"] == inputs


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not (out / BUILD_FILE).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise MooError("exists and is no corpus", str(out), "choose another output folder")


def _prepare_partial(partial: Path, inputs: str) -> None:
    key = partial / "inputs"
    if partial.exists() and (not key.is_file() or key.read_text() != inputs):
        shutil.rmtree(partial)
    partial.mkdir(exist_ok=True)
    key.write_text(inputs)


def _replace(out: Path, partial: Path) -> None:
    (partial / "inputs").unlink()
    for journal in partial.rglob("*.journal"):
        journal.unlink()
    old = out.parent / f".{out.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(partial, out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
