"""Rows that a kernel reads: plain tensors, or fp8 bytes with their scales beside them.

packed row of n values, B = ceil(n / 128):

| 128 B values, one byte each, zeros after the n-th | B scales, fp32 |       132 B bytes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

GROUP = 128  # values that share a scale
FORMATS = ("e4m3", "e5m2")
MAX_ROWS = 32


def packed_bytes(n: int) -> int:
    """Bytes of a packed row of ``n`` values: a quarter of fp32's and 3.1 % of that for the scales."""
    return -(-n // GROUP) * (GROUP + 4)


@dataclass(frozen=True)
class PackedRows:
    """Rows as :func:`megatron_moo.kernels.pack_rows` writes them.

    Attributes:
        buffer: ``[P, packed_bytes(n)]`` uint8, the last dimension contiguous, every row at a multiple of 4 bytes.
        n: values of a row.
        format: ``e4m3`` or ``e5m2``.

    Raises:
        ValueError: for a buffer of another shape or an unknown format.
    """

    buffer: torch.Tensor
    n: int
    format: str = "e4m3"

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r}, expected one of {', '.join(FORMATS)}")
        buffer = self.buffer
        if buffer.dtype != torch.uint8 or buffer.dim() != 2 or buffer.shape[1] != packed_bytes(self.n):
            raise ValueError(
                f"a packed buffer of {self.n} values is uint8 [P, {packed_bytes(self.n)}], "
                f"not {buffer.dtype} {list(buffer.shape)}"
            )
        if buffer.shape[1] and (buffer.stride(1) != 1 or buffer.stride(0) % 4 or buffer.data_ptr() % 4):
            raise ValueError("packed rows start at multiples of 4 bytes and are contiguous")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, values of a row)."""
        return self.buffer.shape[0], self.n

    @property
    def device(self) -> torch.device:
        return self.buffer.device

    @property
    def values(self) -> torch.Tensor:
        """``[P, n]`` uint8, the codes."""
        return self.buffer[:, : self.n]

    @property
    def scales(self) -> torch.Tensor:
        """``[P, ceil(n / 128)]`` fp32, powers of two."""
        groups = -(-self.n // GROUP)
        return self.buffer[:, GROUP * groups :].view(torch.float32)


Rows = torch.Tensor | PackedRows


def few_enough(rows: Sequence[Rows]) -> bool:
    """Whether the kernels take so many rows; their twins take any number."""
    return sum(piece.shape[0] for piece in rows) <= MAX_ROWS


def check_rows(rows: Sequence[Rows]) -> tuple[int, int]:
    """(number of rows, values of a row) of pieces ``[P_s, n]`` that belong together.

    Raises:
        ValueError: for none or more than 32 rows, different lengths, or a dtype that no kernel reads.
    """
    if not rows:
        raise ValueError("no rows")
    count, n = sum(piece.shape[0] for piece in rows), rows[0].shape[1]
    if not 1 <= count <= MAX_ROWS:
        raise ValueError(f"{count} rows, expected 1 to {MAX_ROWS}")
    for piece in rows:
        if piece.shape[1] != n:
            raise ValueError(f"rows of {piece.shape[1]} and of {n} values")
        if isinstance(piece, torch.Tensor):
            if piece.dtype not in (torch.float32, torch.bfloat16):
                raise ValueError(f"rows of {piece.dtype}, expected float32 or bfloat16")
            if piece.numel() and piece.stride(1) != 1:
                raise ValueError("the values of a row must be contiguous")
    return count, n
