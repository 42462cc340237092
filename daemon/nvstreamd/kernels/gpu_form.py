"""How do a segment's weights lie in a card's memory? Matrices packed for its kernels, all else as the file has it.

kernels/gpu/packed.h says how a matrix is packed: 16 rows are a tile, 128 columns a quad, and each tile's quad a piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nvstreamd import ggml
from nvstreamd.ggml import GgmlType
from nvstreamd.kernels.device import Tensors

TILE, QUAD_COLUMNS, BLOCK = 16, 128, 32
ALIGNMENT = 256
# Bytes of a piece; of_type.cu holds its own reckoning against it.
PIECE_BYTES: dict[GgmlType, int] = {
    ggml.Q4_0: 1152, ggml.Q4_1: 1280, ggml.Q5_0: 1408, ggml.Q5_1: 1536, ggml.Q8_0: 2176, ggml.Q2_K: 704,
    ggml.Q3_K: 928, ggml.Q4_K: 1216, ggml.Q5_K: 1472, ggml.Q6_K: 1696, ggml.IQ4_NL: 1152, ggml.IQ4_XS: 1120,
    ggml.MXFP4: 1152,
}
FLOATS = (ggml.F32, ggml.F16, ggml.BF16)


def up(value: int, step: int) -> int:
    """How many steps hold the value."""
    return -(-value // step)


def packed_bytes(kind: GgmlType, rows: int, columns: int) -> int:
    """Bytes of a packed matrix."""
    return up(rows, TILE) * up(columns, QUAD_COLUMNS) * PIECE_BYTES[kind]


@dataclass(frozen=True, slots=True)
class Placed:
    """A tensor: `raw_bytes` from `raw_offset` on in the file's form, `nbytes` from `offset` on in the card's."""

    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    raw_offset: int
    raw_bytes: int

    @property
    def packed(self) -> bool:
        """True where it is packed, False where it is copied."""
        return self.type in PIECE_BYTES and len(self.shape) == 2


@dataclass(frozen=True, slots=True)
class Form:
    """The tensors of a segment in a card's memory, which take `nbytes` there and `raw_bytes` as the file has them."""

    tensors: Mapping[str, Placed]
    nbytes: int
    raw_bytes: int

    @staticmethod
    def of(tensors: Tensors) -> Form:
        """The form of tensors that lie so in a segment."""
        placed: dict[str, Placed] = {}
        at = raw_end = 0
        for name, tensor in tensors.items():
            rows, columns = (1, *tensor.shape)[-2:]
            raw = rows * tensor.type.row_bytes(columns)
            packed = tensor.type in PIECE_BYTES and len(tensor.shape) == 2
            nbytes = packed_bytes(tensor.type, rows, columns) if packed else raw
            placed[name] = Placed(tensor.type, tuple(tensor.shape), at, nbytes, tensor.offset, raw)
            at += up(nbytes, ALIGNMENT) * ALIGNMENT
            raw_end = max(raw_end, tensor.offset + raw)
        return Form(placed, max(at, ALIGNMENT), raw_end)
