"""What every rank runs: ``python -m megatron_moo.training.main --flags``, under torchrun or srun."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from typing import Any

from megatron_moo.buckets.doing import DOING
from megatron_moo.errors import MooError
from megatron_moo.training import platform
from megatron_moo.training.orphans import die_with_parent, tie_children
from megatron_moo.training.watchdog import leave, peer_is_lost, short


def main() -> int:
    """Train with Megatron's own ``pretrain()``; the flags are in ``sys.argv``. Does not return when a peer is lost."""
    try:
        return _train()
    except RuntimeError as error:
        if not peer_is_lost(error):
            raise
        traceback.print_exc()
        leave(f"another rank is gone ({short(error)}); this one is in {DOING.line()}")


def _train() -> int:
    signal.signal(signal.SIGUSR1, _as_sigterm)
    die_with_parent(signal.SIGTERM)  # a rank whose launcher is gone saves and leaves
    tie_children()
    platform.prepare()
    with platform.quiet():
        from megatron.core.enums import ModelType
        from megatron.training import training
        from megatron.training.argument_utils import pretrain_cfg_container_from_args
        from megatron.training.arguments import parse_and_validate_args

    from megatron_moo.training.arguments import add_moo_arguments
    from megatron_moo.training.install import install

    args = parse_and_validate_args(extra_args_provider=add_moo_arguments)
    run = install(args)
    try:
        training.pretrain(
            pretrain_cfg_container_from_args(args),
            run.datasets,
            ModelType.encoder_or_decoder,
            run.forward_step,
            model_provider=run.model_provider,
            non_loss_data_func=run.after_validation,
        )
    except SystemExit:  # Megatron's end of a run that a signal or a limit stops
        run.close()
        raise
    run.end()
    return 0


def _as_sigterm(_signal: int, _frame: Any) -> None:
    """SLURM's ``--signal=USR1`` is one more way to be asked to end; Megatron knows a single signal, SIGTERM."""
    os.kill(os.getpid(), signal.SIGTERM)


def entry() -> int:
    """:func:`main` with a user's mistake told in one line."""
    try:
        return main()
    except MooError as error:
        sys.stderr.write(f"megatron-moo: error: {error}\n")
        return 2


if __name__ == "__main__":
    sys.exit(entry())
