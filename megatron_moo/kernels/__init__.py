"""The two passes over memory of a step: rows to Gramian, and rows to update."""

from megatron_moo.kernels.combine import combine
from megatron_moo.kernels.gramian import gramian

__all__ = ["combine", "gramian"]
