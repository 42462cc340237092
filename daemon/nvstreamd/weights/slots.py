"""Which part of the arena belongs to which segment? The memory budget, cut into regions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvdma.arena import Arena
from nvstreamd.errors import BudgetTooSmall
from nvstreamd.weights.manifest import align_up


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes `offset` to `offset + nbytes` of the arena: as memory and as uint8 [nbytes].

    `data` does not hold the arena open: it is not to be looked at after the slots were given back.
    """

    offset: int
    nbytes: int
    view: memoryview
    data: npt.NDArray[np.uint8]


class _Borrowed:
    """An address as numpy's array interface wants it. It exports no buffer, so a traceback that keeps an array of a
    failed pass alive does not keep the arena from closing."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__array_interface__ = {"data": (address, False), "shape": (nbytes,), "typestr": "|u1", "version": 3}


def _borrow(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    return np.asarray(_Borrowed(address, nbytes))


class Slots:
    """Hands out regions of an open arena, front to back, and never more than there are."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._used = 0
        self._regions: list[Region] = []

    def open(self, stack: ExitStack) -> None:
        """From here on regions may be taken; `stack` lets go of their views, so that the arena can close."""
        stack.callback(self._release)

    def resident(self, nbytes: int) -> Region:
        """A region that is never given back."""
        size = align_up(nbytes)
        if self._used + size > self.arena.nbytes:
            raise BudgetTooSmall(f"{size} bytes do not fit: {self.arena.nbytes - self._used} are left of the budget",
                                 "give the model a larger budget")
        view = self.arena.view[self._used : self._used + size]
        region = Region(self._used, size, view, _borrow(self.arena.address + self._used, size))
        self._used += size
        self._regions.append(region)
        return region

    def ring(self, count: int, nbytes: int) -> Iterator[Region]:
        """`count` regions of `nbytes` that segments pass through."""
        return iter([self.resident(nbytes) for _ in range(count)])

    @property
    def used(self) -> int:
        """Bytes handed out so far: what the budget is held against."""
        return self._used

    def _release(self) -> None:
        for region in self._regions:
            region.view.release()
        self._regions.clear()
