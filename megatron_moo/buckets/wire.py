"""What travels: rows as fp32, as bf16, or as fp8 with a scale for 128 values (DESIGN section 3).

Nothing is summed in flight across objectives, so rows may travel rounded and still be summed in fp32. All rows of a
bucket are rounded, the receiver's own too: the update must not depend on which rank computed an objective. They
arrive in the gradient buffer, which is dead once it is packed.
"""

from __future__ import annotations

import torch

from megatron_moo.kernels import PackedRows, pack_rows, packed_bytes, unpack

WIRES = ("fp32", "bf16", "fp8")


def row_bytes(values: int, wire: str) -> int:
    """Bytes of a row of so many values."""
    return packed_bytes(values) if wire == "fp8" else values * (2 if wire == "bf16" else 4)


class Wire:
    """Packs a bucket for an all-to-all, and unpacks what arrives.

    Args:
        name: one of :data:`WIRES`, but not fp32, which needs no packing.
        feedback: add to every row what packing lost of the last row of the same objective that this rank sent (error
            feedback: Seide et al. 2014; Karimireddy et al., arXiv 1901.09847). What was lost is kept for every
            objective, in fp32, since objectives may take turns.
    """

    def __init__(self, name: str, feedback: bool) -> None:
        self.name, self.feedback = name, feedback
        self._lost: dict[tuple[str, int], torch.Tensor] = {}

    def pack(self, rows: torch.Tensor, bucket: str, objective: int, fed: bool = True) -> torch.Tensor:
        """Rows ``[receivers, shard]`` as what travels, ``[receivers, row_bytes(shard)]``.

        Args:
            rows: one for each receiver.
            bucket: its name.
            objective: whose rows they are.
            fed: whether the rows take part in the feedback; False for those of other shards than usual.
        """
        residual = self._residual(rows, bucket, objective) if self.feedback and fed else None
        if self.name == "fp8":
            return pack_rows(rows.float(), residual=residual)
        if residual is None:
            return rows.to(torch.bfloat16)
        total = rows.float() + residual
        packed = total.to(torch.bfloat16)
        torch.sub(total, packed, out=residual)
        residual.nan_to_num_(0.0, 0.0, 0.0)
        return packed

    def unpack(self, rows: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
        """Write what arrived over ``rows`` ``[senders, shard]``; returns them."""
        senders, shard = rows.shape
        if self.name == "fp8":
            return unpack(PackedRows(received.view(senders, -1), shard), out=rows)
        return rows.copy_(received.view(senders, -1))

    def _residual(self, rows: torch.Tensor, bucket: str, objective: int) -> torch.Tensor:
        """What was lost of this objective's last rows; zeros when there were none."""
        lost = self._lost.get((bucket, objective))
        if lost is None or lost.shape != rows.shape:
            lost = self._lost[bucket, objective] = torch.zeros(rows.shape, device=rows.device)
        return lost
