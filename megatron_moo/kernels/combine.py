"""The update of a shard: d = sum_r c_r x_r, written in place into one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SPAN = 1 << 16


def combine(rows: Sequence[torch.Tensor], coefficients: torch.Tensor, out: torch.Tensor) -> None:
    """Write ``coefficients @ rows`` to ``out``.

    A row whose coefficient is zero is left out, whatever it holds: 0 x NaN is NaN.

    Args:
        rows: tensors ``[P_s, n]`` (fp32 or bf16), together P rows.
        coefficients: ``[P]``, any float dtype.
        out: ``[n]`` fp32 or bf16; may be one of the rows, since each span is computed before it is written.
    """
    c = coefficients.float()
    used = c != 0
    for start in range(0, out.numel(), _SPAN):
        end = min(start + _SPAN, out.numel())
        pieces = [piece[:, start:end].float() for piece in rows]
        x = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        d = c @ x
        if not x.is_cuda and torch.isfinite(d).all():
            out[start:end].copy_(d)
        else:
            out[start:end].copy_(c @ torch.where(used[:, None], x, 0.0))
