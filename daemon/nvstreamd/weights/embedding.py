"""How do a few rows of the embedding come to the batch without the whole table in memory?"""

from __future__ import annotations

import os
from collections.abc import Sequence

from nvstreamd.errors import ModelChanged
from nvstreamd.weights.files import OpenFile
from nvstreamd.weights.manifest import Embedding


class EmbeddingRows:
    """Fetches packed rows by token id with one small pread(2) a distinct token.

    The rows become activations at once; they are no part of the weight budget.
    """

    def __init__(self, table: Embedding, files: Sequence[OpenFile]) -> None:
        self.table = table
        self.files = files
        self.row_bytes = table.type.row_bytes(table.columns)

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
        row = os.pread(file.fd, self.row_bytes, piece.offset + (token - piece.first_row) * self.row_bytes)
        if len(row) != self.row_bytes:
            raise ModelChanged(f"{file.path}: the embedding of token {token} is gone", "restore the file, load again")
        return row
