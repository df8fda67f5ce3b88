"""What travels: rows as fp32, as bf16, or as fp8 with a scale for 128 values (DESIGN section 3).

Nothing is summed in flight across objectives, so rows may travel rounded and still be summed in fp32. All rows of a
bucket are rounded, the receiver's own too: the update must not depend on which rank computed an objective. They
arrive in the gradient buffer, which is dead once it is packed.
"""

from __future__ import annotations

import torch

from megatron_moo.buckets.blocks import BucketPlan
from megatron_moo.kernels import PackedRows, pack_rows, packed_bytes, unpack

WIRES = ("fp32", "bf16", "fp8")


def row_bytes(values: int, wire: str) -> int:
    """Bytes of a row of so many values."""
    return packed_bytes(values) if wire == "fp8" else values * (2 if wire == "bf16" else 4)


class Wire:
    """Packs a bucket for an all-to-all, and unpacks what arrives.

    Args:
        name: one of :data:`WIRES`, but not fp32, which needs no packing.
        feedback: add to every row what packing lost of the same objective's row a step before (error feedback:
            Seide et al. 2014; Karimireddy et al., arXiv 1901.09847).
    """

    def __init__(self, name: str, feedback: bool) -> None:
        self.name, self.feedback = name, feedback
        self._lost: dict[tuple[str, int], tuple[int, torch.Tensor]] = {}

    def pack(self, plan: BucketPlan, slot: int, objective: int) -> torch.Tensor:
        """The bucket's gradient as ``[members, row_bytes(shard)]`` of what travels, one row for each receiver."""
        rows = plan.rows
        residual = self._residual(plan, slot, objective) if self.feedback else None
        if self.name == "fp8":
            return pack_rows(rows.float(), residual=residual)
        if residual is None:
            return rows.to(torch.bfloat16)
        total = rows.float() + residual
        packed = total.to(torch.bfloat16)
        torch.sub(total, packed, out=residual)
        residual.nan_to_num_(0.0, 0.0, 0.0)
        return packed

    def unpack(self, plan: BucketPlan, received: torch.Tensor) -> torch.Tensor:
        """Write the rows that arrived over the gradient buffer; returns them, ``[members, shard]``."""
        if self.name == "fp8":
            packed = PackedRows(received.view(plan.members, -1), plan.shard)
            return unpack(packed, out=plan.rows)
        return plan.rows.copy_(received.view(plan.members, -1))

    def _residual(self, plan: BucketPlan, slot: int, objective: int) -> torch.Tensor:
        """What was lost of this objective's last row in this slot; zeros when the slot computed another."""
        of, lost = self._lost.get((plan.name, slot), (-1, None))
        if lost is None:
            lost = torch.zeros(plan.members, plan.shard, device=plan.grad.device)
        elif of != objective:
            lost.zero_()
        self._lost[plan.name, slot] = (objective, lost)
        return lost
