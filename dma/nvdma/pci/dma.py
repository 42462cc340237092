"""Which memory may a device reach, and under which addresses does it know it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

PAGE = 4096

Pages = npt.NDArray[np.uint64]


class BusAddresses(Protocol):
    """The device's addresses of a stretch of memory."""

    def at(self, offset: int) -> int:
        """The device's address of byte `offset`."""

    def pages(self, offset: int, nbytes: int) -> Pages:
        """The device's address of each page that `nbytes` from `offset` on touch; `offset` is a multiple of PAGE."""


@dataclass(frozen=True, slots=True)
class Contiguous:
    """Memory that an IOMMU shows to the device as one stretch from `first` on."""

    first: int

    def at(self, offset: int) -> int:
        """The address `offset` bytes after `first`."""
        return self.first + offset

    def pages(self, offset: int, nbytes: int) -> Pages:
        """The addresses of the pages, PAGE bytes apart, shape (pages,); `offset` is a multiple of PAGE."""
        return np.arange(self.first + offset, self.first + offset + nbytes, PAGE, dtype=np.uint64)


@dataclass(frozen=True, slots=True)
class Scattered:
    """Memory whose pages the device sees one by one, as without an IOMMU."""

    addresses: Pages

    def at(self, offset: int) -> int:
        """The address of byte `offset`: that of its page, and how far into it the byte is."""
        return int(self.addresses[offset // PAGE]) + offset % PAGE

    def pages(self, offset: int, nbytes: int) -> Pages:
        """The addresses of the pages that `nbytes` from `offset` on touch, shape (pages,).

        Raises ValueError beyond the memory: a command would have fewer pages than bytes.
        """
        begin, end = offset // PAGE, -(-(offset + nbytes) // PAGE)
        if not 0 <= begin <= end <= len(self.addresses):
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not in memory of {len(self.addresses)} pages")
        return self.addresses[begin:end]


@dataclass(frozen=True, slots=True)
class DmaMemory:
    """`nbytes` of pinned memory at virtual `address`, looked at through `view`, and where the device sees them."""

    view: memoryview
    address: int
    bus: BusAddresses

    @property
    def nbytes(self) -> int:
        """The bytes the device may reach."""
        return self.view.nbytes
