"""Which words name a model's weights? A key for what moves as one, and the slices of tensors that make it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """The purpose of a piece of a model's weights."""

    CONSTANTS = "constants"
    LAYER = "layer"
    EXPERT = "expert"
    HEAD = "head"


@dataclass(frozen=True, slots=True)
class Key:
    """The weights that are read, kept and multiplied as one: layer `number`, a part of the output head, or constants.

    Constants are what all others need, such as the norm before the head: they are always in memory. An expert is number
    `part` of those of its layer; the layer's own key is what all rows need.
    """

    kind: Kind
    number: int = 0
    part: int = 0

    @property
    def name(self) -> str:
        """Its name in manifests, messages and traces."""
        match self.kind:
            case Kind.CONSTANTS:
                return str(self.kind)
            case Kind.EXPERT:
                return f"{self.kind}.{self.number}.{self.part}"
        return f"{self.kind}.{self.number}"


@dataclass(frozen=True, slots=True)
class Slice:
    """`count` from `first` on of the outermost dimension of the tensor `tensor`; steps call them `name`.

    Of a vector or a matrix a slice has as many dimensions; of more, it is one matrix, `count` being 1.
    """

    name: str
    tensor: str
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A key and the slices that make it."""

    key: Key
    slices: tuple[Slice, ...]
