"""Megatron on one rank of this process, and a fresh model for every cell."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import random
import socket
import sys
import tempfile
from typing import Any

import numpy as np
import torch

from megatron_moo.experiment.setting import Setting


class Engine:
    """Starts Megatron once; :meth:`model` builds what ``megatron-moo train`` would build for a seed.

    Args:
        setting: of all cells.
        vocab: size of the corpus's vocabulary.
    """

    def __init__(self, setting: Setting, vocab: int) -> None:
        from megatron_moo.training import platform

        platform.prepare()
        with platform.quiet():
            from megatron.training import initialize
            from megatron.training.arguments import parse_and_validate_args

            from megatron_moo.training.arguments import add_moo_arguments
        from megatron_moo.training.recipe import DEFAULTS, REQUIRED, to_argv

        self.setting = setting
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        os.environ.update(
            RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
        )
        values = {
            **platform.CPU_FLAGS, **DEFAULTS, **REQUIRED, **setting.recipe(), "vocab-size": vocab, "lr": 1e-3,
            "run-dir": tempfile.gettempdir(),
        }  # fmt: skip
        logging.getLogger("megatron").setLevel(logging.ERROR)
        before, sys.argv = sys.argv, ["experiment", *to_argv(values)]
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # Megatron prints every argument
                self.args = parse_and_validate_args(extra_args_provider=add_moo_arguments)
                with platform.initialising(), platform.quiet():
                    initialize.initialize_megatron()
        finally:
            sys.argv = before

    def model(self, seed: int) -> Any:
        """A fresh model with the weights that Megatron draws for ``seed``."""
        from megatron.core import tensor_parallel
        from megatron.training.initialize import set_jit_fusion_options

        from megatron_moo.models.gpt import build_model
        from megatron_moo.training import platform

        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        tensor_parallel.model_parallel_cuda_manual_seed(seed)
        with platform.quiet():
            set_jit_fusion_options(tp_size=1)  # its warm-up draws random numbers before Megatron's model does
            return build_model(self.args)
