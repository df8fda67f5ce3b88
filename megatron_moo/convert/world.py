"""A private world of one rank in which Megatron can be started for a forward pass."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from megatron_moo.models.families.model import Model


def forward_flags(model: Model, folder: Path, length: int, dtype: torch.dtype) -> dict[str, Any]:
    """Flags with which Megatron loads a checkpoint only to look at its logits."""
    from megatron_moo.convert.recipe_flags import all_flags
    from megatron_moo.training.platform import CPU_FLAGS

    precision = {torch.bfloat16: {"bf16": True}, torch.float16: {"fp16": True}}.get(dtype, {})
    return {
        **CPU_FLAGS,
        **all_flags(model),
        **precision,
        "max-position-embeddings": max(length, int(model.flags["max-position-embeddings"])),
        "tokenizer-type": "NullTokenizer",
        "vocab-size": model.dims["vocab"],
        "seq-length": length,
        "micro-batch-size": 1,
        "train-iters": 1,
        "lr": 1e-3,
        "eval-iters": 0,
        "rerun-mode": "disabled",
        "ckpt-format": "torch_dist",
        "pretrained-checkpoint": str(folder),
    }


@contextlib.contextmanager
def one_rank(flags: dict[str, Any]) -> Iterator[Any]:
    """Start Megatron on one gloo rank of our own; yields its arguments and takes everything down again."""
    import torch.distributed as dist

    from megatron_moo.training import platform
    from megatron_moo.training.arguments import add_moo_arguments
    from megatron_moo.training.recipe import to_argv

    platform.prepare()
    with platform.quiet():
        from megatron.core import num_microbatches_calculator, parallel_state, rerun_state_machine
        from megatron.training import global_vars, initialize
        from megatron.training.arguments import parse_and_validate_args
    saved, environment = sys.argv, dict(os.environ)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(os.path.join(folder, "store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=timedelta(seconds=60))
        sys.argv = ["convert", *to_argv(flags)]
        logging.disable(logging.WARNING)  # a forward pass for a comparison has nothing to tell of itself
        try:
            with contextlib.redirect_stdout(io.StringIO()), platform.initialising():
                args = parse_and_validate_args(extra_args_provider=add_moo_arguments)
                initialize.initialize_megatron()
            yield args
        finally:
            logging.disable(logging.NOTSET)
            sys.argv = saved
            os.environ.clear()
            os.environ.update(environment)
            parallel_state.destroy_model_parallel()
            global_vars.destroy_global_vars()
            num_microbatches_calculator.destroy_num_microbatches_calculator()
            rerun_state_machine.destroy_rerun_state_machine()
            dist.destroy_process_group()


def load_model(args: Any) -> Any:
    """Build the model and load ``--pretrained-checkpoint`` into it with Megatron's own loader."""
    from megatron.training.checkpointing import load_checkpoint

    from megatron_moo.models.gpt import build_model

    model = build_model(args).to(args.params_dtype)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load_checkpoint([model], None, None, strict=True)
    return model.eval()
