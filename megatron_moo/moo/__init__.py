"""Gradient-based multi-objective weights from Gramians: ``G = J J^T`` in, ``w`` out, ``d = sum_k w_k g_k``.

    >>> import torch
    >>> from megatron_moo.moo import make_method
    >>> J = torch.tensor([[-4.0, 1, 1], [6, 1, 1]], dtype=torch.float64)
    >>> make_method("mgda")(J @ J.T) @ J
    tensor([-0.,  1.,  1.], dtype=torch.float64)

It needs torch and nothing else, works on any number of blocks at once, and never waits for the device.
"""

from __future__ import annotations

from .method import Method
from .mgda import min_norm_weights
from .options import Option, Spec
from .registry import METHODS, make_method, parse_options

__all__ = ["METHODS", "Method", "Option", "Spec", "make_method", "min_norm_weights", "parse_options"]
