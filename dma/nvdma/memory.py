"""What kinds of memory are there, and which bytes of one does somebody mean?

A kind is a type's field, not a code path: what moves or multiplies bytes takes a `Span` and asks it where it lies.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MemoryKind(StrEnum):
    """Where memory is: pageable host memory, host memory that devices reach, or a GPU's own."""

    HOST = "host"
    PINNED = "pinned"
    VRAM = "vram"


@dataclass(frozen=True, slots=True)
class Memory:
    """`nbytes` bytes from `address` on, as whoever uses memory of this kind addresses it."""

    kind: MemoryKind
    address: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `offset` to `offset + nbytes` of a memory."""

    memory: Memory
    offset: int
    nbytes: int

    @property
    def address(self) -> int:
        """The address of its first byte."""
        return self.memory.address + self.offset
