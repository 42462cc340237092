"""Where does a processor keep keys and values? In pages, each of one piece for all layers of its group."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nvstreamd.kernels.rows import PAGE_TOKENS
from nvstreamd.program import KvGroup

Halves = npt.NDArray[np.float16]
BYTES_PER_ELEMENT = 2
SLACK = 64


@dataclass(frozen=True, slots=True)
class KvMemory:
    """The pages of a group: `halves` [pages, layers, 2, heads, dim * PAGE_TOKENS] float16, keys before values.

    One copy moves a page, whatever the number of layers. Behind the last value lies room for a vector: kernels may read
    over the end of a row.
    """

    group: KvGroup
    halves: Halves

    @property
    def pages(self) -> int:
        """How many pages there are."""
        return int(self.halves.shape[0])

    def keys(self, layer: int) -> Halves:
        """The layer's keys where they lie, [pages, heads, dim, PAGE_TOKENS]."""
        return self.halves[:, layer, 0].reshape(self.pages, self.group.heads, self.group.dim, PAGE_TOKENS)

    def values(self, layer: int) -> Halves:
        """The layer's values where they lie, [pages, heads, PAGE_TOKENS, dim]."""
        return self.halves[:, layer, 1].reshape(self.pages, self.group.heads, PAGE_TOKENS, self.group.dim)


def page_bytes(group: KvGroup) -> int:
    """Bytes of a page of the group."""
    return PAGE_TOKENS * group.elements * BYTES_PER_ELEMENT


def untouched_zeros(elements: int) -> Halves:
    """float16 zeros that take memory only where something was written: the kernel's own zero pages."""
    memory = mmap.mmap(-1, elements * BYTES_PER_ELEMENT, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return np.frombuffer(memory, np.float16)


def make_kv(group: KvGroup, pages: int) -> KvMemory:
    """Empty keys and values. Zeros, not garbage: a NaN that is masked away would still poison a weighted sum."""
    shape = (pages, group.layers, 2, group.heads, group.dim * PAGE_TOKENS)
    elements = pages * PAGE_TOKENS * group.elements
    return KvMemory(group, untouched_zeros(elements + SLACK)[:elements].reshape(shape))
