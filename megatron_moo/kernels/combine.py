"""The update of a shard: d = sum_r c_r x_r, written in place into one of the rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# Values of a row that are handled at a time: the result of a span stays in the cache until it is written.
_SPAN = 1 << 16


def combine(
    rows: Sequence[torch.Tensor], coefficients: torch.Tensor, out: torch.Tensor, masked: bool = True
) -> None:
    """Write ``coefficients @ rows`` to ``out``.

    Args:
        rows: tensors ``[P_s, n]`` (fp32 or bf16), together P rows.
        coefficients: ``[P]``, any float dtype.
        out: ``[n]`` fp32 or bf16; may be one of the rows, since each span is computed before it is written.
        masked: leave out rows whose coefficient is zero, whatever they hold (0 x NaN is NaN). It costs another pass
            over the rows; give False when every row is known to be finite.
    """
    c = coefficients.float().split([piece.shape[0] for piece in rows])
    used = [(part != 0)[:, None] for part in c] if masked else []
    for start in range(0, out.numel(), _SPAN):
        end = min(start + _SPAN, out.numel())
        total: torch.Tensor | None = None
        for index, piece in enumerate(rows):
            x = piece[:, start:end].float()
            if masked:
                x = torch.where(used[index], x, 0.0)
            if len(x) > 1:
                part = c[index] @ x
                total = part if total is None else total.add_(part)
            else:  # a product of a matrix of one row takes 1.5 times as long
                total = x[0] * c[index] if total is None else total.addcmul_(x[0], c[index])
        assert total is not None
        out[start:end].copy_(total)
