"""Which GGML tensor types are there, and how many bytes does a block of each take?

Source: the GGUF specification's ggml_type table. Sizes are in bytes, lengths in elements.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A block format: `block_length` consecutive weights of a row lie in `block_bytes` bytes."""

    id: int
    name: str
    block_length: int
    block_bytes: int

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row of `columns` weights; `columns` is a multiple of the block length."""
        return columns // self.block_length * self.block_bytes


F32 = GgmlType(0, "F32", 1, 4)
F16 = GgmlType(1, "F16", 1, 2)
Q4_0 = GgmlType(2, "Q4_0", 32, 18)
Q4_1 = GgmlType(3, "Q4_1", 32, 20)
Q5_0 = GgmlType(6, "Q5_0", 32, 22)
Q5_1 = GgmlType(7, "Q5_1", 32, 24)
Q8_0 = GgmlType(8, "Q8_0", 32, 34)
Q2_K = GgmlType(10, "Q2_K", 256, 84)
Q3_K = GgmlType(11, "Q3_K", 256, 110)
Q4_K = GgmlType(12, "Q4_K", 256, 144)
Q5_K = GgmlType(13, "Q5_K", 256, 176)
Q6_K = GgmlType(14, "Q6_K", 256, 210)
IQ4_NL = GgmlType(20, "IQ4_NL", 32, 18)
IQ4_XS = GgmlType(23, "IQ4_XS", 256, 136)
BF16 = GgmlType(30, "BF16", 1, 2)
MXFP4 = GgmlType(39, "MXFP4", 32, 17)

SUPPORTED = (F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, BF16, MXFP4)
BY_ID = {kind.id: kind for kind in SUPPORTED}
BY_NAME = {kind.name: kind for kind in SUPPORTED}
