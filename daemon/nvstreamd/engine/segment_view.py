"""How does a family find its tensors in a slot?"""

from __future__ import annotations

import torch

from nvstreamd.kernels.dequantise import dequantise
from nvstreamd.kernels.weight import Weight
from nvstreamd.weights.manifest import Place, Segment


class SegmentView:
    """The tensors of `segment` in `data`, the slot's bytes; valid as long as the slot is held."""

    def __init__(self, segment: Segment, data: torch.Tensor) -> None:
        self.segment = segment
        self._data = data
        self._places = {place.name: place for place in segment.tensors}

    def has(self, name: str) -> bool:
        """Whether the segment brings that tensor."""
        return name in self._places

    def _bytes(self, place: Place) -> torch.Tensor:
        return self._data[place.offset : place.offset + place.nbytes]

    def matrix(self, name: str) -> Weight:
        """A two-dimensional tensor, left where it lies."""
        place = self._places[name]
        rows, columns = place.shape
        return Weight(place.type, rows, columns, self._bytes(place))

    def vector(self, name: str) -> torch.Tensor:
        """A one-dimensional tensor as float32, copied out of the slot."""
        place = self._places[name]
        return dequantise(place.type, self._bytes(place), place.shape[-1])[0].clone()

    def first_not_finite(self) -> str | None:
        """The name of the first tensor that holds NaN or infinity."""
        for place in self.segment.tensors:
            rows = dequantise(place.type, self._bytes(place), place.shape[-1])
            if not bool(torch.isfinite(rows).all()):
                return place.name
        return None
