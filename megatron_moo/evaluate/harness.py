"""The same cloze through lm-evaluation-harness, as a cross-check of our scorer."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_moo.data.tokenizers import Tokenizer
from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText
from megatron_moo.evaluate.cloze import Item, render, write_task


def check_lengths(
    tokenizer: Tokenizer, items: Sequence[Item], texts: Mapping[str, AlignedText], max_length: int
) -> None:
    """Refuse a continuation that is longer than the model's window: lm-eval cannot score it.

    Raises:
        MooError: naming the language.
    """
    for tag, text in texts.items():
        choices = ["\n" + choice for item in items for choice in render(item, text).choices]
        longest = max(len(ids) for ids in tokenizer.encode_batch(choices))
        if longest > max_length:
            raise MooError(
                f"a continuation in {tag} has {longest} tokens, the model's window {max_length}",
                "--lm-eval",
                "leave it out",
            )


def harness_cloze(
    hf: Path,
    items: Sequence[Item],
    texts: Mapping[str, AlignedText],
    folder: Path,
    max_length: int,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """``acc`` and ``acc_norm`` per language by lm-eval, on task files written to ``folder``.

    Args:
        hf: folder with weights and a tokenizer that transformers reads.

    Raises:
        MooError: lm-eval is not installed, or the folder has no tokenizer of its own.
    """
    if not (hf / "tokenizer.json").is_file():
        raise MooError("has no tokenizer.json, which lm-eval needs", str(hf), "leave --lm-eval out")
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise MooError("needs lm-eval", "--lm-eval", "pip install lm-eval==0.4.13") from None
    write_task(items, texts, folder)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = HFLM(
            pretrained=str(hf), dtype="float32", batch_size=batch_size, max_length=max_length, device="cpu"
        )
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        names = [f"moo_cloze_{tag}" for tag in texts]
        told = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
    results = told["results"]
    return {
        tag: {name: float(results[f"moo_cloze_{tag}"][f"{name},none"]) for name in ("acc", "acc_norm")}
        for tag in texts
    }
