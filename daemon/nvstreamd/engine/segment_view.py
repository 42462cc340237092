"""How does a family find its tensors in a slot?"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nvstreamd.kernels.batch import Floats
from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.weight import Weight
from nvstreamd.weights.manifest import Place, Segment


class SegmentView:
    """The tensors of `segment` in `data`, the slot's bytes; to be used only while the slot is held.

    What was looked up once is kept: a slot holds the same bytes whenever it holds the segment.
    """

    def __init__(self, segment: Segment, data: npt.NDArray[np.uint8]) -> None:
        self.segment = segment
        self._data = data
        self._places = {place.name: place for place in segment.tensors}
        self._matrices: dict[str, Weight] = {}
        self._vectors: dict[str, Floats] = {}

    def has(self, name: str) -> bool:
        """Whether the segment brings that tensor."""
        return name in self._places

    def _bytes(self, place: Place) -> npt.NDArray[np.uint8]:
        return self._data[place.offset : place.offset + place.nbytes]

    def matrix(self, name: str) -> Weight:
        """`name`.weight, left where it lies, with `name`.bias where there is one."""
        found = self._matrices.get(name)
        if found is None:
            place = self._places[f"{name}.weight"]
            rows, columns = place.shape
            bias = self.vector(f"{name}.bias") if self.has(f"{name}.bias") else None
            found = self._matrices[name] = Weight(place.type, rows, columns, self._bytes(place), bias)
        return found

    def vector(self, name: str) -> Floats:
        """A one-dimensional tensor as float32, copied out of the slot."""
        found = self._vectors.get(name)
        if found is None:
            place = self._places[name]
            found = self._vectors[name] = dequantise(place.type, self._bytes(place), place.shape[-1])[0].copy()
        return found

    def first_not_finite(self) -> str | None:
        """The name of the first tensor that holds NaN or infinity."""
        for place in self.segment.tensors:
            rows = dequantise(place.type, self._bytes(place), place.shape[-1])
            if not np.isfinite(rows).all():
                return place.name
        return None
