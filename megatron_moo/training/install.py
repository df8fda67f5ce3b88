"""MOO in a team's own Megatron script: two lines, before the model is built."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from megatron_moo.buckets.seam import check_version
from megatron_moo.errors import MooError
from megatron_moo.training.arguments import add_moo_arguments, moo_config
from megatron_moo.training.run import TrainingRun
from megatron_moo.training.support import check_supported
from megatron_moo.training.watchdog import STOCK_MINUTES, group_minutes

# What Megatron must have been told, as (argument, value, flag).
_NEEDED = (
    ("use_distributed_optimizer", True, "--use-distributed-optimizer"),
    ("dataloader_type", "external", "--dataloader-type external"),
)


def install(args: Any, **settings: Any) -> TrainingRun:
    """Put Bucket-Level MOO into Megatron's training of this process.

    Call it once, after Megatron's arguments are parsed and before the model is built, and give ``pretrain()`` the
    returned run's ``datasets``::

        moo = megatron_moo.install(args, languages="languages.yaml", moo_method="cagrad")
        pretrain(config, moo.datasets, ModelType.encoder_or_decoder, forward_step, model_provider=model_provider)

    Validation losses per language and the end of the run are written without more lines. Where there is no GPU,
    ``megatron_moo.prepare()`` must come before Megatron is imported.

    ``forward_step`` stays the team's own; it draws a dict of ``tokens``, ``labels``, ``loss_mask`` and
    ``position_ids`` ``[b, s]`` from its iterator and reports ``{"lm loss": [sum, tokens]}``.

    Args:
        args: Megatron's parsed and validated arguments; our flags may be among them.
        settings: our flags by argument name (``languages``, ``moo_method``, …); they win over ``args``.

    Returns:
        the run; ``run.remove()`` takes MOO out again.

    Raises:
        MooError: naming the flag, for anything a user can mend.
    """
    defaults = vars(add_moo_arguments(argparse.ArgumentParser()).parse_args([]))
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise MooError(f"unknown setting {unknown[0]!r}", "install()", f"choose from {', '.join(defaults)}")
    for name, default in defaults.items():
        if name in settings or not hasattr(args, name):
            setattr(args, name, settings.get(name, default))
    # First what cannot work: Megatron turns needed settings off for some of it, and those would be blamed.
    check_supported(args)
    check_needed(args)
    check_version()
    if args.languages is None:
        raise MooError("no manifest", "--languages", "name a languages.yaml")
    # DDP and the training loop read these later.
    args.ddp_reduce_scatter_with_fp32_accumulation = args.num_distributed_optimizer_instances == 1
    args.check_for_nan_in_loss_and_grad = False
    # Megatron makes its process groups later; its default is nobody's wish.
    minutes = args.distributed_timeout_minutes
    args.distributed_timeout_minutes = group_minutes(
        float(args.moo_timeout), None if minutes == STOCK_MINUTES else minutes
    )
    complete(args)
    return TrainingRun(args)


def check_needed(args: Any) -> None:
    """Refuse settings that MOO cannot do without.

    Raises:
        MooError: naming the flag.
    """
    for name, value, flag in _NEEDED:
        if getattr(args, name) != value:
            raise MooError(f"{name} is {getattr(args, name)!r}", flag, "MOO needs this flag")


def complete(args: Any) -> None:
    """Build the corpus if none is named, and settle run folder, vocabulary and validation on ``args``.

    Raises:
        MooError: for a corpus whose vocabulary does not fit the model.
    """
    from megatron_moo.data import LanguageSampler, ValidationBatches, build_corpus, load_manifest, open_corpus

    run_dir = Path(args.run_dir or (Path(args.save).parent if args.save else "runs/megatron"))
    run_dir.mkdir(parents=True, exist_ok=True)
    args.run_dir = str(run_dir)
    manifest = load_manifest(args.languages)
    moo_config(args, len(manifest.objectives))  # what it refuses need not wait for the corpus
    if args.corpus is None:
        args.corpus = str(build_corpus(manifest, run_dir / "corpus").path)
    corpus = open_corpus(args.corpus)
    # Gemma 3's tokenizer has an id that its model has no row for and its text never uses.
    if corpus.vocab_size > args.padded_vocab_size and corpus.largest_token() >= args.padded_vocab_size:
        raise MooError(
            f"the corpus has {corpus.vocab_size} tokens, the model {args.padded_vocab_size}",
            "--vocab-size",
            f"use --tokenizer-type NullTokenizer --vocab-size {corpus.vocab_size}",
        )
    dp = args.data_parallel_size
    sampler = LanguageSampler(corpus, "valid", args.seq_length, args.seed)
    tags = (*manifest.languages, *manifest.unseen)
    count = len(ValidationBatches(sampler, tags, 0, dp, args.micro_batch_size))
    args.eval_iters, args.eval_micro_batch_size = 1, args.micro_batch_size
    args.eval_global_batch_size = count * dp * args.micro_batch_size
