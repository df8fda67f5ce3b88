"""What moves or multiplies rows: a Triton kernel for a GPU and a plain torch twin for everything else.

``NAME.py`` holds the twin and chooses, ``NAME_triton.py`` the kernel; Triton is imported on a GPU only.
"""

from megatron_moo.kernels.combine import combine, combine_segments
from megatron_moo.kernels.gramian import gramian, gramian_segments
from megatron_moo.kernels.norms import rms_norm
from megatron_moo.kernels.pack import pack_rows, unpack
from megatron_moo.kernels.rows import PackedRows, packed_bytes
from megatron_moo.kernels.segments import SegmentTable
from megatron_moo.kernels.solve import solve_blocks

__all__ = [
    "PackedRows",
    "SegmentTable",
    "combine",
    "combine_segments",
    "gramian",
    "gramian_segments",
    "pack_rows",
    "packed_bytes",
    "rms_norm",
    "solve_blocks",
    "unpack",
]
