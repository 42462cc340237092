"""What does a kernel need to know of a matrix whose bytes lie in a slot?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvstreamd.ggml import GgmlType


@dataclass(frozen=True, slots=True)
class Weight:
    """`rows` x `columns` weights of `type`; `data` is a uint8 view [rows * row_bytes] of a slot, not a copy.

    `bias` [rows] float32 is added to each product, where there is one.
    """

    type: GgmlType
    rows: int
    columns: int
    data: npt.NDArray[np.uint8]
    bias: npt.NDArray[np.float32] | None = None

    def slice(self, begin: int, end: int) -> npt.NDArray[np.uint8]:
        """The bytes of rows `begin` to `end`."""
        row_bytes = self.type.row_bytes(self.columns)
        return self.data[begin * row_bytes : end * row_bytes]
