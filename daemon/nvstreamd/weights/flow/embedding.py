"""How do a few rows of the embedding come to the batch without the whole table in memory?"""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from nvstreamd.errors import BadModelFile, ModelChanged
from nvstreamd.weights.packed.files import OpenFile
from nvstreamd.weights.packed.manifest import Embedding

CHECK_BYTES = 1 << 20


class EmbeddingRows:
    """Fetches packed rows by token id with one small pread(2) a distinct token.

    The rows become activations at once; they are no part of the weight budget. A packed table is held against its
    checksum here, once: rows are too small to be checked one by one.
    """

    def __init__(self, table: Embedding, files: Sequence[OpenFile]) -> None:
        self.table = table
        self.files = files
        self.row_bytes = table.type.row_bytes(table.columns)
        if table.checksum is not None:
            self._verify(table.checksum)

    def fetch(self, token_ids: Sequence[int]) -> bytearray:
        """The packed rows of `token_ids`, in that order; ids are below the table's row count."""
        rows = {token: self._row(token) for token in set(token_ids)}
        packed = bytearray()
        for token in token_ids:
            packed += rows[token]
        return packed

    def _row(self, token: int) -> bytes:
        piece = next(p for p in self.table.pieces if p.first_row <= token < p.first_row + p.rows)
        file = self.files[piece.file]
        row = file.read(self.row_bytes, piece.offset + (token - piece.first_row) * self.row_bytes)
        if len(row) != self.row_bytes:
            raise ModelChanged(f"{file.path}: the embedding of token {token} is gone", "restore the file, load again")
        return row

    def _verify(self, expected: int) -> None:
        digest = xxhash.xxh3_64()
        for piece in self.table.pieces:
            end = piece.offset + piece.rows * self.row_bytes
            for offset in range(piece.offset, end, CHECK_BYTES):
                digest.update(self.files[piece.file].read(min(CHECK_BYTES, end - offset), offset))
        if digest.intdigest() != expected:
            names = " and ".join(sorted({self.files[piece.file].path for piece in self.table.pieces}))
            raise BadModelFile(f"{names}: embedding has checksum {digest.intdigest():016x}, expected {expected:016x}",
                               "the store is damaged: import the model again", field="embedding")
