"""lm-evaluation-harness: the same cloze as a cross-check of our scorer, and tasks of its own by name."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_moo.data.tokenizers import Tokenizer
from megatron_moo.errors import MooError
from megatron_moo.evaluate.aligned import AlignedText
from megatron_moo.evaluate.cloze import Item, render, write_task
from megatron_moo.evaluate.model import Opened


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
    opened: Opened,
    items: Sequence[Item],
    texts: Mapping[str, AlignedText],
    folder: Path,
    batch_size: int = 8,
) -> dict[str, dict[str, float]]:
    """``acc`` and ``acc_norm`` per language by lm-eval, on task files written to ``folder``.

    Raises:
        MooError: lm-eval is not installed, the model has no tokenizer that transformers reads, or lm-eval would encode
            a text otherwise than we do.
    """
    _require(opened.hf, "--lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    write_task(items, texts, folder)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        model = _model(opened, batch_size)
        _same_ids(opened, model)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        names = [f"moo_cloze_{tag}" for tag in texts]
        told = simple_evaluate(model=model, tasks=names, task_manager=manager, bootstrap_iters=0)
    results = told["results"]
    return {
        tag: {name: float(results[f"moo_cloze_{tag}"][f"{name},none"]) for name in ("acc", "acc_norm")}
        for tag in texts
    }


def run_tasks(
    opened: Opened, names: Sequence[str], folder: Path | None = None, batch_size: int = 8
) -> dict[str, dict[str, Any]]:
    """Tasks and groups of lm-eval by name, with the number of examples that each asks to be shown.

    Args:
        names: of tasks, groups or tags that lm-eval brings along or ``folder`` holds.
        folder: with task files of one's own; one of a name that lm-eval has goes before it.

    Returns:
        per task, and per group: ``metrics``, ``stderr`` (by metric, where there is one), ``items``, ``shots``,
        ``version``.

    Raises:
        MooError: lm-eval is not installed, it knows no such task, or the task cannot be loaded (most load their data
            from the network).
    """
    _require(opened.hf, "--tasks")
    from lm_eval import simple_evaluate

    manager = _manager(names, folder)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise MooError(
            f"lm-eval has no task {unknown[0]!r}",
            "--tasks",
            "lm_eval ls tasks names them; --task-dir adds your own",
        )
    model = _model(opened, batch_size)
    try:
        told = simple_evaluate(
            model=model, tasks=list(names), task_manager=manager, log_samples=False, bootstrap_iters=100
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:  # ConnectionError is an OSError
        words = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise MooError(
            f"lm-eval cannot run {', '.join(names)} ({type(error).__name__}: {words})",
            "--tasks",
            "its data may need a network, or HF_HUB_OFFLINE to be unset",
        ) from error
    return {name: _told(told, name) for name in told["results"]}


def _told(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One task's numbers, without the names of filters where there is only the usual one."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for key, value in told["results"][name].items():
        if "," not in key or isinstance(value, bool) or not isinstance(value, int | float):
            continue  # the alias, or "N/A"
        metric, _, name_of_filter = key.partition(",")
        short = metric.replace("_stderr", "") + ("" if name_of_filter == "none" else f",{name_of_filter}")
        (errors if "_stderr" in metric else metrics)[short] = float(value)
    counts = told.get("n-samples", {}).get(name, {})
    return {
        "metrics": metrics,
        "stderr": errors,
        "items": counts.get("effective"),
        "shots": told.get("n-shot", {}).get(name),
        "version": told.get("versions", {}).get(name),
    }


def _require(hf: Path, flag: str) -> None:
    if not (hf / "tokenizer.json").is_file():
        raise MooError("has no tokenizer.json, which lm-eval needs", str(hf), f"leave {flag} out")
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise MooError("needs lm-eval", flag, "pip install lm-eval==0.4.13") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)


def _model(opened: Opened, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(
        pretrained=str(opened.hf),
        dtype="float32",
        batch_size=batch_size,
        max_length=opened.max_length,
        device=str(opened.model.device),
        add_bos_token=bool(opened.bos),
    )


def _same_ids(opened: Opened, model: Any) -> None:
    """Refuse where lm-eval would show the model other ids for a text than we do."""
    text = "a b"
    ours, theirs = [*opened.bos, *opened.tokenizer.encode_batch([text])[0]], list(model.tok_encode(text))
    if ours != theirs:
        raise MooError(
            f"lm-eval encodes {text!r} as {theirs}, we as {ours}",
            "--lm-eval",
            "leave it out; the tokenizer in the folder is not the one asked for, or it adds pieces behind a text",
        )


def _manager(names: Sequence[str], folder: Path | None) -> Any:
    """Tasks of a folder if it has all the names and they are no groups; else lm-eval's too, which takes a while."""
    from lm_eval.tasks import TaskManager

    if folder is not None:
        own = TaskManager(include_path=str(folder), include_defaults=False)
        if {*names} <= {*own.all_subtasks}:
            return own
    return TaskManager(include_path=str(folder) if folder is not None else None)
