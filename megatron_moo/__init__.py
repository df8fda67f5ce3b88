"""Bucket-Level multi-objective optimisation for multilingual training on Megatron-Core."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "add_arguments", "install", "prepare"]


def install(args: Any, **settings: Any) -> Any:
    """Put MOO into a team's own Megatron script; see :func:`megatron_moo.training.install.install`."""
    from megatron_moo.training.install import install as put_in

    return put_in(args, **settings)


def add_arguments(parser: Any) -> Any:
    """Add our flags to Megatron's parser (``extra_args_provider``)."""
    from megatron_moo.training.arguments import add_moo_arguments

    return add_moo_arguments(parser)


def prepare() -> None:
    """Make this process ready to import Megatron on a machine without a GPU; elsewhere it does nothing harmful."""
    from megatron_moo.training.platform import prepare as make_ready

    make_ready()
