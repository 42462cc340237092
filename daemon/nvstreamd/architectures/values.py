"""Which numbers do a layer's activations get? Each layer counts anew, so that all of them share the same memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from nvstreamd.program import Value

HIDDEN = 0


@dataclass(frozen=True, slots=True)
class Kept:
    """Where a layer's keys and values are kept: as layer `layer` of KvGroup `group`."""

    group: int
    layer: int


class Values:
    """Hands out values; number 0 is the hidden state, which goes from layer to layer."""

    def __init__(self, width: int) -> None:
        self.hidden = Value(HIDDEN, width)
        self._ids = count(HIDDEN + 1)

    def new(self, columns: int) -> Value:
        """A value that no block of this layer has yet."""
        return Value(next(self._ids), columns)
