"""Which of the addresses that an IOMMU offers are still free?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nvdma.errors import ArenaExhausted

# Mappings begin on huge-page boundaries, so that the IOMMU can use large entries wherever memory does.
ALIGNMENT = 2 << 20


@dataclass(frozen=True, slots=True)
class IovaRange:
    """Usable addresses `first` to `last`, both included."""

    first: int
    last: int


class IovaSpace:
    """Hands out stretches of `ranges`, lowest first; what was given back is not used again."""

    def __init__(self, ranges: Sequence[IovaRange]) -> None:
        self._free = sorted(ranges, key=lambda found: found.first)

    def take(self, nbytes: int) -> int:
        """The first address of `nbytes` free ones. Raises ArenaExhausted."""
        for number, found in enumerate(self._free):
            # Address 0 is left alone: a descriptor that was never filled must not hit memory.
            begin = max(ALIGNMENT, -(-found.first // ALIGNMENT) * ALIGNMENT)
            if begin + nbytes - 1 <= found.last:
                self._free[number] = IovaRange(begin + nbytes, found.last)
                return begin
        raise ArenaExhausted(f"the IOMMU has no {nbytes} addresses in one piece left",
                             hint="lower the memory budget, or give the machine's IOMMU a wider address width")
